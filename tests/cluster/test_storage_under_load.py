"""Many at once on few connections, calls that are given up in the middle, servers that end transactions: nothing hangs,
nothing leaks, and whoever was told of a commit finds it. Hostile values are kept or refused."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import msgspec
import pytest
import sqlalchemy as sa

from kernel.agent import AgentChange, AgentId, Report
from kernel.broker import BrokerId, SessionId
from kernel.config import Settings
from kernel.config.settings import StorageSettings
from kernel.errors import Failure, PointsmanError, StorageUnavailable
from kernel.intent import Op
from kernel.node import NodeId
from kernel.storage import (
    AgentEdit,
    AgentFilter,
    BrokerEdit,
    BrokerJoin,
    IdempotencyKey,
    IntentFilter,
    Keyset,
    Page,
    Progress,
    ProjectEdit,
    Reaped,
    Recording,
)
from kernel.testing.postgres import Server
from kernel.testing.storage.world import World, uuid
from plugins.storage.ledger import sessions
from plugins.storage.ledger.query import Overtaken, Query, Tx
from plugins.storage.postgres.connecting import Connection, Target
from plugins.storage.postgres.opening import opened
from plugins.storage.postgres.storage import PostgresStorage
from tests.cluster.steering import NODE, other, unfinished, waits_for_a_lock, watcher, world
from tests.harness.proxy import Proxy

__all__ = ["other", "watcher", "world"]
pytestmark = pytest.mark.anyio

FEW = msgspec.structs.replace(Settings(), storage=StorageSettings(pool_min=1, pool_max=5))
Call = Callable[[], Coroutine[Any, Any, Any]]
OURS = "application_name LIKE 'pointsman-%' AND pid <> pg_backend_pid()"


@pytest.fixture
async def small(postgres_dsn: str) -> AsyncIterator[World]:
    """Five connections for everything that has none of its own."""
    storage = await opened(Target(dsn=postgres_dsn, deadline=10.0), FEW, NODE)
    yield await World.built(storage)
    await storage.close()


async def all_is_quiet(watcher: Connection) -> None:
    """Nobody is in a transaction."""
    asked = f"SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND {OURS}"
    with anyio.fail_after(30):
        while await watcher.fetchval(asked):
            await anyio.sleep(0.02)


# -- many at once --------------------------------------------------------------------------------------------------


async def test_two_hundred_calls_on_five_connections_all_come_to_their_end(small: World, watcher: Connection) -> None:
    """Also when they wait for each other: with one key, of one agent, in one project."""
    agent = await small.runs(await small.new_agent())
    slowest = 0.0

    async def timed(call: Call) -> None:
        nonlocal slowest
        began = time.monotonic()
        await call()
        slowest = max(slowest, time.monotonic() - began)

    async with anyio.create_task_group() as tasks:
        for n in range(200):
            tasks.start_soon(timed, _calls(small, agent.id, agent.run_id, agent.slug)[n % 8])
    assert slowest < 10.0
    await all_is_quiet(watcher)
    connections = f"SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pointsman-pool%' AND {OURS}"
    assert await watcher.fetchval(connections) <= 5


def _calls(world: World, agent_id: AgentId, run_id: str | None, slug: str) -> list[Call]:
    storage = world.storage
    key = IdempotencyKey(principal="user:test", key="one", request_hash="same")

    async def keyed() -> None:
        new = world.intent(Op.STOP, await world.read_agent(agent_id))
        await storage.record(Recording(intents=(new,), key=key, answer=b"told"))

    async def cancelled() -> None:
        intent = await world.record(Op.SUSPEND, await world.read_agent(agent_id))
        await storage.cancel(intent.id, world.node)

    report = Report(agent_id=agent_id, source="broker", run_id=run_id, detail={"n": uuid()})
    return [
        keyed,
        cancelled,
        world.creation,
        lambda: storage.report(report),
        lambda: storage.find_agent(slug, world.project.id),
        lambda: storage.list_intents(IntentFilter(), Page()),
        lambda: storage.edit_agent(AgentEdit(agent_id=agent_id, labels={"a": "b"})),
        lambda: storage.find_agent(agent_id),
    ]


async def test_plugins_own_statements_leave_the_server_room_for_others(small: World, watcher: Connection) -> None:
    """Each dials; a hundred at once are not a hundred connections."""
    most = 0
    done = anyio.Event()

    async def watch() -> None:
        nonlocal most
        while not done.is_set():
            asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pointsman-sql%'"
            most = max(most, await watcher.fetchval(asked))
            await anyio.sleep(0.005)

    async with anyio.create_task_group() as watching:
        watching.start_soon(watch)
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(small.storage.sql.run, sa.text("SELECT pg_sleep(0.02)"))
        done.set()
    assert most <= 5


# -- given up in the middle ----------------------------------------------------------------------------------------


async def test_calls_that_are_given_up_leave_no_connection_behind(small: World, watcher: Connection) -> None:
    agent = await small.runs(await small.new_agent())
    dice = random.Random(7)

    async def given_up(call: Call, after: float) -> None:
        with anyio.move_on_after(after):
            await call()

    for _ in range(8):
        async with anyio.create_task_group() as tasks:
            for n in range(40):
                call = _calls(small, agent.id, agent.run_id, agent.slug)[n % 8]
                tasks.start_soon(given_up, call, dice.uniform(0.0, 0.08))
    await all_is_quiet(watcher)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for n in range(40):
                tasks.start_soon(_calls(small, agent.id, agent.run_id, agent.slug)[n % 8])


async def test_a_call_that_is_given_up_while_it_waits_is_undone(
    small: World, other: Connection, watcher: Connection
) -> None:
    agent = await small.new_agent()
    held = ("SELECT 1 FROM agents WHERE id = $1 FOR UPDATE", agent.id)
    async with unfinished(other, held), anyio.create_task_group() as tasks:
        tasks.start_soon(small.storage.edit_agent, AgentEdit(agent_id=agent.id, name="other"))
        await waits_for_a_lock(watcher, "pointsman-pool")
        tasks.cancel_scope.cancel()
    await all_is_quiet(watcher)
    assert (await small.read_agent(agent.id)).name == agent.name


async def test_a_call_that_is_given_up_as_its_transaction_begins_leaves_none_open(
    postgres: Server, postgres_dsn: str, watcher: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Its BEGIN is under way: nobody here knows yet that there is a transaction."""
    with Proxy(postgres.port) as way:
        dsn = postgres.dsn(postgres_dsn.rpartition("/")[2], port=way.port)
        storage = await opened(Target(dsn=dsn, deadline=10.0), FEW, NODE)
        world = await World.built(storage)
        agent = await world.new_agent()
        way.delay(0.1)
        with anyio.move_on_after(0.15):
            await storage.edit_agent(AgentEdit(agent_id=agent.id, name="other"))
        way.heal()
        await all_is_quiet(watcher)
        assert (await world.read_agent(agent.id)).name == agent.name
        await storage.close()
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


# -- transactions that the server ends -----------------------------------------------------------------------------


async def test_a_transaction_whose_connection_ends_before_the_commit_is_run_again(
    world: World, other: Connection, watcher: Connection
) -> None:
    agent = await world.new_agent()
    held = ("SELECT 1 FROM agents WHERE id = $1 FOR UPDATE", agent.id)
    edited = []

    async def edit() -> None:
        edited.append(await world.storage.edit_agent(AgentEdit(agent_id=agent.id, name="other")))

    async with unfinished(other, held), anyio.create_task_group() as tasks:
        tasks.start_soon(edit)
        for _ in range(3):
            await waits_for_a_lock(watcher, "pointsman-pool")
            await watcher.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND application_name LIKE 'pointsman-pool%'"
            )
        await waits_for_a_lock(watcher, "pointsman-pool")
        await other.execute("COMMIT")
    assert edited[0].name == "other"


AT_COMMIT = """
    CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON broker_dispatch DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION slowly();
"""


async def test_of_a_commit_whose_answer_is_lost_nobody_says_that_it_was_not_done(
    world: World, other: Connection, watcher: Connection
) -> None:
    """And the same call, repeated, gets the same end."""
    await other.execute(AT_COMMIT)
    agent = await world.new_agent()
    key = IdempotencyKey(principal="user:test", key="one", request_hash="same")
    recording = Recording(intents=(world.intent(Op.STOP, agent),), key=key, answer=b"told")
    told: list[Exception] = []

    async def record() -> None:
        try:
            await world.storage.record(recording)
        except StorageUnavailable as fault:
            told.append(fault)

    async with unfinished(other, ("SELECT pg_advisory_xact_lock(4711)",)), anyio.create_task_group() as tasks:
        tasks.start_soon(record)
        await waits_for_a_lock(watcher, "pointsman-pool")
        await watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND application_name LIKE 'pointsman-pool%'"
        )
    assert "not known" in str(told[0])
    again = await world.storage.record(recording)
    assert [one.id for one in again.intents] == [recording.intents[0].id]
    assert (await world.storage.find_key(key)) is not None


async def test_a_transaction_that_failed_is_never_taken_for_committed(world: World) -> None:
    """Should a function ever go on after a statement was refused, the server answers the commit with a rollback."""
    bad = Query[Any](sa.select(sa.literal_column("1 / 0")))

    def careless(tx: Tx) -> str:
        try:
            tx.one(bad)
        except Exception:
            return "went on"
        return ""

    storage = world.storage
    assert isinstance(storage, PostgresStorage)
    with pytest.raises(StorageUnavailable, match="nothing was done"):
        await storage._write(careless)
    assert await storage.list_nodes()


async def test_who_is_overtaken_again_and_again_is_told_to_come_back(world: World) -> None:
    def overtaken(tx: Tx) -> None:
        raise Overtaken

    storage = world.storage
    assert isinstance(storage, PostgresStorage)
    with pytest.raises(StorageUnavailable, match="again and again"):
        await storage._write(overtaken)


async def test_in_front_of_a_frozen_server_every_call_is_told_in_time() -> None:
    """However many there are, and however they come: all at once or one after the other."""
    deadline = 1.0
    with Server() as server:
        storage = await opened(Target(dsn=server.dsn(), deadline=deadline), FEW, NODE)
        world = await World.built(storage)
        agent = await world.runs(await world.new_agent())
        calls = _calls(world, agent.id, agent.run_id, agent.slug)
        claim: Call = world.claim
        slowest = 0.0

        async def told(call: Call) -> None:
            nonlocal slowest
            began = time.monotonic()
            with pytest.raises(StorageUnavailable):
                await call()
            slowest = max(slowest, time.monotonic() - began)

        server.freeze()
        async with anyio.create_task_group() as tasks:
            for n in range(120):
                tasks.start_soon(told, [*calls, claim][n % 9])
                await anyio.sleep(0.02)
        server.thaw()
        assert slowest < 4 * deadline, "no call waits for the others' deadlines"
        with anyio.fail_after(30):
            for call in (*calls, claim):
                await _at_last(call)
        await storage.close()


async def _at_last(call: Call) -> None:
    """It may meet what the server still has to do, or connections of before."""
    while True:
        try:
            await call()
        except StorageUnavailable:
            await anyio.sleep(0.1)
        else:
            return


# -- a lost node ---------------------------------------------------------------------------------------------------


async def test_a_lost_node_is_cleared_in_few_statements_however_much_it_held(world: World, watcher: Connection) -> None:
    """Else a sweep would never be done within its time, and be undone each time."""
    lost = await world.another_node()
    count = 120
    for _ in range(count):
        broker = await world.new_broker()
        agents = [await world.new_agent(runtime_broker_id=broker.id) for _ in range(3)]
        session = (await world.storage.claim_session(world.session_claim(broker_id=broker.id, node_id=lost))).session
        for agent in agents:
            await world.record(Op.STOP, agent)
        assert len((await world.claim(session=session)).intents) == 3
    await watcher.execute("UPDATE hub_nodes SET beat_at = now() - interval '1 hour' WHERE id = $1", lost)
    await watcher.execute("UPDATE hub_nodes SET beat_at = now() WHERE id = $1", world.node)  # whoever judges beats
    storage = world.storage
    assert isinstance(storage, PostgresStorage)
    cleared, moved, statements = 0, 0, 0
    for _ in range(2):
        reaped, asked = await storage._write(lambda tx: _reaped(Counting(tx), world.node))
        assert len(reaped.changed.transitions) == len(reaped.changed.intents)
        cleared += len(reaped.cleared)
        moved += len(reaped.changed.intents)
        statements += asked
    assert (cleared, moved) == (count, 3 * count)
    assert statements < 60


def _reaped(tx: Counting, judge: NodeId) -> tuple[Reaped, int]:
    return sessions.reap(tx, judge, 6.0, 15.0), tx.asked


class Counting:
    """A transaction that counts its statements: each is a way to the server and back."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        self.asked += name in ("all", "one", "run", "elect", "queue")
        return getattr(self._tx, name)


# -- hostile values ------------------------------------------------------------------------------------------------

WORDS = ["", "\x00", "a\x00b", "\ud800", "x" * 100_000, "'; DROP TABLE agents; --", "\u202e", "%s", "{}", "💥" * 500]
NUMBERS = [-1, 0, 2**31, 2**63 - 1, 2**63, 2**200]
IDS = ["", "no id", "\x00", "\ud800", "0" * 32, "g" * 36, "00000000-0000-0000-0000-00000000000", "{" + "0" * 36 + "}"]


async def outcome(call: Call) -> None:
    """Done or refused in the kernel's words; never a fault of the driver, nor a database that is said to be gone."""
    try:
        await call()
    except StorageUnavailable as fault:
        raise AssertionError("a bad value is no outage") from fault
    except PointsmanError:
        pass


@pytest.mark.parametrize("bad", IDS, ids=ascii)
async def test_what_is_no_id_is_refused_or_finds_nothing(world: World, bad: Any) -> None:
    storage, agent = world.storage, await world.new_agent()
    session = msgspec.structs.replace(world.session, session_id=SessionId(bad))
    intent = await world.claimed(Op.STOP, agent)
    for call in (
        lambda: storage.find_agent(bad),
        lambda: storage.find_agent(bad, bad),
        lambda: storage.find_agents([bad, agent.id], bad),
        lambda: storage.find_broker(bad),
        lambda: storage.find_project(bad),
        lambda: storage.find_intents([bad, intent.id]),
        lambda: storage.explain(bad),
        lambda: storage.cancel(bad, world.node, bad),
        lambda: storage.expire([bad], world.ending(intent).error or _failure(), world.node),
        lambda: storage.progress([Progress(intent_id=bad, op=Op.STOP, epoch=world.session.epoch, attempt=1)]),
        lambda: storage.end(world.ending(intent, intent_id=bad, agent_id=bad)),
        lambda: storage.end(world.ending(intent, agent_id=bad, change=AgentChange(run_id=bad))),
        lambda: storage.report(Report(agent_id=bad, source="broker", run_id=bad, broker_id=bad)),
        lambda: storage.quiet(bad, 1.0),
        lambda: storage.edit_agent(AgentEdit(agent_id=bad)),
        lambda: storage.edit_broker(BrokerEdit(broker_id=bad)),
        lambda: storage.edit_project(ProjectEdit(project_id=bad, default_runtime_broker_id=bad)),
        lambda: storage.edit_project(ProjectEdit(project_id=world.project.id, default_runtime_broker_id=bad)),
        lambda: storage.delete_broker(BrokerId(bad)),
        lambda: storage.delete_project(bad),
        lambda: storage.drain_node(NodeId(bad)),
        lambda: storage.broker_secrets(BrokerId(bad)),
        lambda: storage.join_broker(BrokerJoin(broker_id=BrokerId(bad), token_hash=bad, key_id=bad, sealed=b"")),
        lambda: storage.claim_session(world.session_claim(broker_id=bad)),
        lambda: storage.claim_session(world.session_claim(session_id=bad)),
        lambda: storage.release_session(session, 1000, [bad]),
        lambda: storage.renew([session]),
        lambda: storage.list_intents(IntentFilter(agent_id=bad, broker_id=bad), Page(after=Keyset(created=0, id=bad))),  # type: ignore[arg-type]
        lambda: storage.list_agents(AgentFilter(project_id=bad), Page()),
        lambda: storage.list_messages(bad, Page(), project_id=bad, agent_id=bad, type=bad),
        lambda: storage.mark_read(bad, bad),
        lambda: storage.list_providers(bad),
        lambda: storage.use_nonce(world.broker.id, bad),
        lambda: world.record(Op.STOP, agent, run_id=bad),
        lambda: world.record(Op.STOP, agent, requeued_from=bad),
        lambda: world.record(Op.STOP, agent, id=bad),
        lambda: world.record(Op.MESSAGE, agent, message=world.message(uuid(), agent, group_id=bad, agent_id=bad)),
        lambda: world.storage.record(Recording(agent=world.agent(runtime_broker_id=bad))),
        lambda: world.storage.record(Recording(agent=world.agent(project_id=bad))),
        lambda: world.claim(ids=(bad,)),
    ):
        await outcome(call)
    assert (await world.end(intent)).accepted


def _failure() -> Failure:
    return Failure(code="x", message="x", status=500)


@pytest.mark.parametrize("bad", WORDS, ids=lambda word: ascii(word[:12]))
async def test_whatever_words_are_kept_or_refused(world: World, bad: str) -> None:
    storage, agent = world.storage, await world.new_agent()
    intent = await world.claimed(Op.STOP, agent)
    key = IdempotencyKey(principal=bad, key=bad, request_hash=bad)
    deep: Any = {bad: [bad, {bad: bad}]}
    message = {"msg": bad, "sender": bad, "recipient": bad, "type": bad, "envelope": deep}
    for call in (
        lambda: world.record(Op.START, agent, args=deep, principal=bad, request_id=bad, route=bad, traceparent=bad),
        lambda: world.record(Op.START, agent, agent_slug=bad, advice={bad: bad}),
        lambda: world.record(Op.MESSAGE, agent, message=world.message(uuid(), agent, **message)),
        lambda: storage.record(Recording(intents=(world.intent(Op.STOP, agent),), key=key)),
        lambda: storage.record(Recording(intents=(world.intent(Op.STOP, agent),), key=key, answer=b"\x00")),
        lambda: storage.record(Recording(intents=tuple(world.intent(Op.MESSAGE, agent) for _ in "ab"), key=key)),
        lambda: storage.find_key(key),
        lambda: storage.record(Recording(agent=world.agent(slug=bad, name=bad, config=deep, labels={bad: bad}))),
        lambda: storage.edit_agent(AgentEdit(agent_id=agent.id, name=bad, labels={bad: bad}, config=deep)),
        lambda: storage.report(Report(agent_id=agent.id, source="agent", activity=bad, detail=deep)),
        lambda: storage.register_broker(world.registration(name=bad, slug=bad, labels={bad: bad}, created_by=bad)),
        lambda: storage.edit_broker(BrokerEdit(broker_id=world.broker.id, name=bad, endpoint=bad)),
        lambda: storage.claim_session(world.session_claim(instance=bad, version=bad, capabilities=(bad,))),
        lambda: storage.use_nonce(world.broker.id, bad),
        lambda: storage.list_messages(bad, Page(), type=bad),
        lambda: storage.find_agents([bad], world.project.id),
        lambda: storage.list_agents(AgentFilter(slug=bad, phase=bad), Page()),
        lambda: world.end(intent, reason=bad, result=deep, error=_failure()),
    ):
        await outcome(call)
    await world.connect()
    assert (await world.read_agent(agent.id)).id == agent.id


@pytest.mark.parametrize("bad", NUMBERS)
async def test_whatever_numbers_are_kept_or_refused(world: World, bad: int) -> None:
    storage, agent = world.storage, await world.new_agent()
    intent = await world.claimed(Op.STOP, agent)
    for call in (
        lambda: world.record(Op.STOP, agent, deadline_in=float(bad)),
        lambda: world.record(Op.STOP, agent, deadline_at=bad),
        lambda: world.record(Op.STOP, agent, created_at=bad),
        lambda: world.record(Op.STOP, agent, args={"n": bad}),
        lambda: storage.claim_session(world.session_claim(window=bad)),
        lambda: world.end(intent, attempt=bad),
        lambda: world.end(intent, sent_at=bad, failures=bad, result=bad),
        lambda: world.put_back(intent, retry_in=float(bad)),
        lambda: storage.edit_agent(AgentEdit(agent_id=agent.id, state_version=bad)),
        lambda: storage.list_intents(IntentFilter(), Page(after=Keyset(created=bad, id=uuid()))),  # type: ignore[arg-type]
        lambda: storage.release_session(world.session, bad, []),
        lambda: storage.expire_unheld(world.node, float(bad), 10),
        lambda: storage.insert_ended(world.intent(Op.STOP, agent, created_at=bad), world.ending(intent, sent_at=bad)),
    ):
        await outcome(call)
    await world.connect()
    assert await storage.list_nodes()


async def test_what_can_never_be_a_deadline_fails_its_own_call_only(world: World) -> None:
    agent = await world.new_agent()
    told: list[Any] = []

    async def record(seconds: float) -> None:
        try:
            told.append(await world.record(Op.STOP, agent, deadline_in=seconds))
        except Exception as fault:
            told.append(fault)

    async with anyio.create_task_group() as tasks:
        for seconds in (60.0, float("inf"), 60.0, float("nan"), 1e300, 60.0):
            tasks.start_soon(record, seconds)
    assert sum(isinstance(one, Exception) for one in told) == 3
    assert not any(isinstance(one, StorageUnavailable) for one in told)
