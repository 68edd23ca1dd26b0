"""A hub whose database goes away while calls are in flight: it tells the truth, and loses nothing."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.harness.fixtures import tasks
from tests.harness.processes import eventually
from tests.harness.scenes import Background, Scene, own_scene

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.hubclient import Answered, Json

__all__ = ["tasks"]
pytestmark = pytest.mark.anyio

DEADLINE = 5.0
"""`server.database_deadline`, and the patience of a LOCAL call's end: what is told is told by then."""
SLACK = 5.0
"""For two busy cores."""
Away = Callable[[Scene], AbstractContextManager[None]]


@contextmanager
def locked(scene: Scene) -> Iterator[None]:
    """Another program holds the lock of whoever writes."""
    connection = sqlite3.connect(scene.hub.directory / "hub.db", timeout=30, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def limited(scene: Scene) -> Iterator[None]:
    """No file of the hub's process may grow beyond what the write-ahead log takes now: as on a full disk."""
    pid, size = scene.hub.ready["pid"], (scene.hub.directory / "hub.db-wal").stat().st_size
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def full(scene: Scene) -> Iterator[None]:
    """The disk is full to the last byte."""
    ballast = scene.hub.directory / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    continue
    try:
        yield
    finally:
        ballast.unlink()


def _mounted(directory: Path) -> bool:
    """A small disk of its own; only an administrator of the machine can make one."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(directory)]
    return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture(params=["locked", "limited", "full"])
async def away(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Scene, Away]]:
    """A scene, and a way in which its hub's database goes away. Who may not mount gets a limit for a full disk."""
    ways: dict[str, Away] = {"locked": locked, "limited": limited, "full": full}
    mounted = request.param == "full" and _mounted(tmp_path / "hub")
    try:
        async with own_scene(tmp_path, hub_settings={"dispatch.rolling_window": "30s"}) as scene:
            yield scene, limited if request.param == "full" and not mounted else ways[request.param]
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(tmp_path / "hub")], check=True)


async def test_a_local_call_is_told_as_unrecorded_and_recorded_later(
    away: tuple[Scene, Away], tasks: TaskGroup
) -> None:
    scene, goes_away = away
    agent = await scene.agent()
    call, _ = await scene.held_up(tasks, "stop", agent, prefer="wait=60")
    with goes_away(scene):
        await scene.broker.release("slow")
        began = time.monotonic()
        answer = (await call.answered()).expect(503)
        assert time.monotonic() - began < DEADLINE + SLACK
        assert answer.code == "outcome_unrecorded"
        assert int(answer.headers["retry-after"]) > 0
        await _refuses_writes(scene)

    async def recorded() -> Json | None:
        found = await scene.api.ask("GET", f"/dispatches/{answer.dispatch}")
        return found.json if found.status == 200 else None

    assert (await eventually(recorded, "the outcome recorded"))["state"] == "done"
    await scene.api.agent_is(agent["id"], "stopped")
    await _goes_on(scene, agent["id"])


async def test_recorded_calls_end_once_when_the_database_is_back(away: tuple[Scene, Away]) -> None:
    scene, goes_away = away
    agents = [await scene.agent() for _ in range(3)]
    await scene.broker.rule(op="restart", gate="slow")
    answers = [
        (await scene.api.do("restart", agent["id"], prefer="respond-async")).expect(202)
        for agent in agents
        for _ in range(2)
    ]
    await scene.broker.seen(what="effect", op="restart", times=3)
    with goes_away(scene):
        await scene.broker.release("slow")
        await _refuses_writes(scene)
        await anyio.sleep(1)
    for answer in answers:
        assert (await scene.api.ended(answer.dispatch))["state"] == "done"
    assert len(scene.broker.effects(op="restart")) == len(answers)
    await _goes_on(scene, agents[0]["id"])


async def test_an_outage_longer_than_every_lease_costs_no_socket(away: tuple[Scene, Away]) -> None:
    """Longer than a node may miss its beats and a session its renewal: nobody judges anybody by that gap."""
    scene, goes_away = away
    agent = await scene.agent()
    with goes_away(scene):
        await anyio.sleep(12)
    await _goes_on(scene, agent["id"])


async def _refuses_writes(scene: Scene) -> None:
    """Whoever needs the database is told so in time."""
    refused: Answered = await scene.api.ask("POST", "/projects", {"name": "one too many"})
    assert refused.expect(503).code == "unavailable"
    assert int(refused.headers["retry-after"]) > 0
    assert refused.took < DEADLINE + SLACK


async def _goes_on(scene: Scene, agent: str) -> None:
    """The hub serves again, over the very socket that it had."""

    async def served() -> bool:
        return (await scene.api.do("stop", agent, prefer="wait=30")).status == 200

    await eventually(served, "a call served")
    await scene.api.broker_is(scene.broker_id, "online")
    assert scene.broker.events(what="closed") == []
    assert len(scene.broker.events(what="connected")) == 1
    await scene.check()


async def test_a_stop_does_not_wait_for_each_call_in_turn(tmp_path: Path, tasks: TaskGroup) -> None:
    """A database that is away costs the stop its deadline a few times, however many calls are in flight."""
    async with own_scene(tmp_path) as scene:
        agents = [await scene.agent() for _ in range(20)]
        await scene.broker.rule(op="stop", gate="slow")
        for agent in agents:
            call = Background()
            tasks.start_soon(call.run, partial(scene.api.do, "stop", agent["id"], prefer="wait=60"))
        await scene.broker.seen(what="request", op="stop", times=len(agents))
        with locked(scene):
            assert await scene.hub.terminate(patience=60) == 0
