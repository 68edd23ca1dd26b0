"""A database that fails while the hub runs: callers are told, nothing is half-done, and work goes on afterwards."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa

from kernel import Agent, AlreadyExists, IntentId, Misconfigured, Op, Recorded, Recording, StorageUnavailable
from kernel.testing.storage.world import World, ids
from plugins.storage.sqlite import worker
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage

pytestmark = pytest.mark.anyio
DEADLINE = 20.0
"""Seconds that a call has where a test is not about time: a busy machine may need some."""
SHORT = 1.0
PATIENCE = 60.0
"""Seconds after which a test that waits for something gives up."""


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[SqliteStorage]:
    storage = SqliteStorage(await opened(Options(path=str(tmp_path / "hub.db"), deadline=DEADLINE)))
    yield storage
    await storage.close()


@pytest.fixture
async def world(storage: SqliteStorage) -> World:
    return await World.built(storage)


class Gate:
    """Holds the writer's thread inside a function until it is opened."""

    def __init__(self, storage: SqliteStorage) -> None:
        self._storage = storage
        self.entered = threading.Event()
        self.opened = threading.Event()

    async def hold(self, then: Any = None) -> None:
        def function(connection: sa.Connection) -> None:
            if then is not None:
                connection.execute(sa.text(then))
            self.entered.set()
            self.opened.wait(PATIENCE)

        await self._storage.sql.transaction(function)

    async def wait(self) -> None:
        with anyio.fail_after(PATIENCE):
            while not self.entered.is_set():
                await anyio.sleep(0.005)


async def hurry(storage: SqliteStorage) -> None:
    """From now on calls have a second, and wait half of that for a lock."""
    await storage.sql.run(sa.text(f"PRAGMA busy_timeout = {SHORT * 500:.0f}"))
    storage._writer._deadline = storage._reader._deadline = SHORT


def take_time(storage: SqliteStorage) -> None:
    storage._writer._deadline = storage._reader._deadline = DEADLINE


async def at_rest(storage: SqliteStorage) -> bool:
    """Once everything that was asked is done, no transaction is open."""
    await storage.ping()
    return not storage._writer.connection.in_transaction


# -- group commit -------------------------------------------------------------------------------------------------


async def test_calls_that_wait_together_share_one_commit(world: World, storage: SqliteStorage) -> None:
    agents = [await world.new_agent() for _ in range(20)]
    gate = Gate(storage)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.hold)
        await gate.wait()
        for agent in agents:
            tasks.start_soon(world.record, Op.STOP, agent)
        await anyio.sleep(0.05)
        gate.opened.set()
    assert storage.last_batch == 20
    assert len((await world.claim()).intents) == 20


async def test_one_that_fails_in_a_batch_fails_alone(world: World, storage: SqliteStorage) -> None:
    agent = await world.new_agent()
    bad = world.agent(slug=agent.slug)
    new = [world.intent(Op.STOP, await world.new_agent()) for _ in range(9)]
    outcomes: list[Recorded | Exception] = []

    async def record(recording: Recording) -> None:
        try:
            outcomes.append(await storage.record(recording))
        except (AlreadyExists, LookupError) as fault:
            outcomes.append(fault)

    gate = Gate(storage)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.hold)
        await gate.wait()
        for number, intent in enumerate(new):
            tasks.start_soon(record, Recording(intents=(intent,)))
            if number == 4:
                bad_one = world.intent(Op.CREATE, bad)
                tasks.start_soon(record, Recording(intents=(bad_one,), agent=bad))
        await anyio.sleep(0.05)
        gate.opened.set()
    assert storage.last_batch == 9, "all in one commit, but for the one that failed"
    assert sum(isinstance(one, AlreadyExists) for one in outcomes) == 1
    assert len(await storage.find_intents([intent.id for intent in new])) == 9
    assert await storage.find_intents([bad_one.id]) == []


async def test_a_fault_of_a_function_is_the_callers_and_ends_no_thread(storage: SqliteStorage) -> None:
    def breaks(connection: sa.Connection) -> None:
        raise KeyError("mine")

    def leaves(connection: sa.Connection) -> None:
        raise SystemExit(3)

    with pytest.raises(KeyError, match="mine"):
        await storage.sql.transaction(breaks)
    with pytest.raises(SystemExit):
        await storage.sql.transaction(leaves)
    await storage.ping()


async def test_a_function_that_ends_the_transaction_itself_spoils_no_neighbour(
    world: World, storage: SqliteStorage
) -> None:
    def ends_it(connection: sa.Connection) -> None:
        connection.execute(sa.text("ROLLBACK"))

    with pytest.raises(StorageUnavailable):
        await storage.sql.transaction(ends_it)
    assert await at_rest(storage)
    await world.record(Op.STOP, await world.new_agent())


# -- callers that leave -------------------------------------------------------------------------------------------


async def test_a_caller_who_leaves_while_it_waits_leaves_nothing_behind(world: World, storage: SqliteStorage) -> None:
    new = world.intent(Op.STOP, await world.new_agent())
    gate = Gate(storage)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.hold)
        await gate.wait()
        with anyio.move_on_after(0.05):
            await storage.record(Recording(intents=(new,)))
        gate.opened.set()
    assert await storage.find_intents([new.id]) == []
    assert await at_rest(storage)


async def test_a_caller_who_leaves_while_its_function_runs_leaves_nothing_behind(
    world: World, storage: SqliteStorage
) -> None:
    gate = Gate(storage)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.hold, "UPDATE projects SET name = 'half'")
        await gate.wait()
        tasks.cancel_scope.cancel()
    gate.opened.set()
    assert await at_rest(storage)
    project = await storage.find_project(world.project.id)
    assert project is not None
    assert project.name == world.project.name


async def test_many_callers_that_come_and_go_leave_the_writer_whole(world: World, storage: SqliteStorage) -> None:
    agents = [await world.new_agent() for _ in range(5)]
    acknowledged: list[str] = []

    async def call(number: int) -> None:
        new = world.intent(Op.MESSAGE, agents[number % 5])
        with anyio.move_on_after((number % 7) * 0.002):
            acknowledged.extend(ids((await storage.record(Recording(intents=(new,)))).intents))

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(call, number)
    found = await storage.find_intents(acknowledged)  # type: ignore[arg-type]
    assert ids(found) == acknowledged
    assert await at_rest(storage)
    await world.record(Op.STOP, agents[0])


async def test_a_claim_whose_caller_left_before_the_commit_is_given_back(world: World, storage: SqliteStorage) -> None:
    intent = await world.record(Op.STOP, await world.new_agent())
    first, second = Gate(storage), Gate(storage)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.hold)
        await first.wait()
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(world.claim)
            await anyio.sleep(0.05)
            tasks.start_soon(second.hold)
            await anyio.sleep(0.05)
            first.opened.set()
            await second.wait()
            leaving.cancel_scope.cancel()
        second.opened.set()
    await storage.ping()
    [again] = (await world.claim()).intents
    assert (again.id, again.attempts) == (intent.id, 2)
    view = await storage.explain(intent.id)
    assert view is not None
    assert [step.reason for step in view.history][-3:] == ["claimed", "unheard", "claimed"]


# -- time -----------------------------------------------------------------------------------------------------------


async def test_a_call_has_a_deadline(world: World, storage: SqliteStorage) -> None:
    new = world.intent(Op.STOP, await world.new_agent())
    gate = Gate(storage)
    await hurry(storage)
    started = time.monotonic()
    async with anyio.create_task_group() as tasks:

        async def held() -> None:
            with pytest.raises(StorageUnavailable):
                await gate.hold()

        tasks.start_soon(held)
        await gate.wait()
        with pytest.raises(StorageUnavailable, match="no answer within"):
            await storage.record(Recording(intents=(new,)))
        assert time.monotonic() - started >= SHORT * 0.9
        gate.opened.set()
    take_time(storage)
    await storage.ping()
    assert await storage.find_intents([new.id]) == [], "who was told that nothing was done was told the truth"


async def test_a_slow_read_is_interrupted_and_the_next_one_served(storage: SqliteStorage) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    await hurry(storage)
    with pytest.raises(StorageUnavailable):
        await storage._reader.call(lambda tx: tx.connection.execute(endless).fetchall())
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await storage.find_broker("nobody")
                break
            except StorageUnavailable:
                continue


async def test_too_many_callers_are_refused_at_once(
    world: World, storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WAITING", 3)
    agent = await world.new_agent()
    refused: list[StorageUnavailable] = []

    async def record() -> None:
        try:
            await world.record(Op.STOP, agent)
        except StorageUnavailable as fault:
            refused.append(fault)

    gate = Gate(storage)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.hold)
        await gate.wait()
        for _ in range(10):
            tasks.start_soon(record)
        await anyio.sleep(0.05)
        assert len(refused) == 7
        gate.opened.set()
    assert "too many" in refused[0].message


async def test_a_closed_storage_says_so(storage: SqliteStorage) -> None:
    await storage.close()
    with pytest.raises(StorageUnavailable, match="closed"):
        await storage.ping()


# -- a locked file ----------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program writes and does not finish."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def test_a_locked_file_is_told_and_work_goes_on_afterwards(
    world: World, storage: SqliteStorage, tmp_path: Path
) -> None:
    agent = await world.new_agent()
    await hurry(storage)
    with locked(tmp_path / "hub.db"):
        with pytest.raises(StorageUnavailable):
            await world.record(Op.STOP, agent)
        with pytest.raises(StorageUnavailable):
            await storage.ping()
        take_time(storage)
        assert await storage.find_agent(agent.id) is not None, "reading goes on"
    await world.record(Op.STOP, agent)


async def test_a_lock_that_is_short_is_waited_for(world: World, tmp_path: Path) -> None:
    agent = await world.new_agent()
    async with anyio.create_task_group() as tasks:
        with locked(tmp_path / "hub.db"):
            tasks.start_soon(world.record, Op.STOP, agent)
            await anyio.sleep(0.2)
    assert len((await world.claim()).intents) == 1


async def record_on_and_on(world: World, agent: Agent, acknowledged: list[IntentId]) -> None:
    for _ in range(1000):
        intent = await world.record(Op.MESSAGE, agent, args={"x": "y" * 3000})
        acknowledged.append(intent.id)


async def test_a_file_that_is_locked_at_the_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    await (await opened(Options(path=str(path)))).close()
    with locked(path), pytest.raises(Misconfigured, match="another program holds a lock"):
        await opened(Options(path=str(path), deadline=0.2))
    await (await opened(Options(path=str(path)))).close()


# -- a full disk ------------------------------------------------------------------------------------------------------


async def test_a_full_database_is_told_and_work_goes_on_with_more_space(world: World, storage: SqliteStorage) -> None:
    agent = await world.new_agent()
    acknowledged = [(await world.record(Op.MESSAGE, agent)).id]
    [(pages,)] = await storage.sql.run(sa.text("PRAGMA page_count"))
    await storage.sql.run(sa.text(f"PRAGMA max_page_count = {pages + 4}"))
    with pytest.raises(StorageUnavailable, match="full"):
        await record_on_and_on(world, agent, acknowledged)
    assert await at_rest(storage)
    await storage.find_agent(agent.id)
    await storage.sql.run(sa.text("PRAGMA max_page_count = 1000000"))
    acknowledged.append((await world.record(Op.MESSAGE, agent)).id)
    assert ids(await storage.find_intents(acknowledged)) == acknowledged


FILLS = """
import os, resource, sys, anyio
from kernel import Op, StorageUnavailable
from kernel.testing.storage.world import World, ids
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage

async def main():
    storage = SqliteStorage(await opened(Options(path=sys.argv[1])))
    world = await World.built(storage)
    agent = await world.new_agent()
    acknowledged, told = [], None
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    for _ in range(3000):
        try:
            acknowledged.append((await world.record(Op.MESSAGE, agent, args={"x": "y" * 3000})).id)
        except StorageUnavailable as fault:
            told = fault.message
            break
    assert told, "the space never ran out"
    for _ in range(3):
        try:
            await world.record(Op.MESSAGE, agent, args={"x": "y" * 30000})
            raise AssertionError("there was space after all")
        except StorageUnavailable:
            pass
    assert await storage.find_agent(agent.id) is not None
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    else:
        os.unlink(sys.argv[2])
    for _ in range(20):
        acknowledged.append((await world.record(Op.MESSAGE, agent)).id)
    assert ids(await storage.find_intents(acknowledged)) == acknowledged
    await storage.close()
    again = SqliteStorage(await opened(Options(path=sys.argv[1])))
    assert ids(await again.find_intents(acknowledged)) == acknowledged
    await again.close()
    print("told:", told, flush=True)

anyio.run(main)
"""


def fill(path: Path, space: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", FILLS, str(path), space], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_that_may_not_grow_is_told_and_work_goes_on(tmp_path: Path) -> None:
    assert "told: the database does not work now" in fill(tmp_path / "hub.db", "limit")


@contextmanager
def small_disk(directory: Path) -> Iterator[Path | None]:
    """A file system of four megabytes; None where this user may not mount one."""
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    try:
        yield directory if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_is_told_and_work_goes_on_with_more_space(tmp_path: Path) -> None:
    """Where nobody may mount, the limit on a file's size stands for the disk's end, as in the test above."""
    with small_disk(tmp_path / "disk") as disk:
        if disk is None:
            assert "told:" in fill(tmp_path / "hub.db", "limit")
            return
        ballast = disk / "ballast"
        ballast.write_bytes(os.urandom(1_500_000))
        assert "the disk is full" in fill(disk / "hub.db", str(ballast))
