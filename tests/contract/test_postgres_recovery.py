"""What a real server forgets, and what is told of it: eras, and rows that may have been claimed once more."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator

import anyio
import asyncpg
import pytest
import sqlalchemy as sa

from kernel.agent import Phase
from kernel.config import Settings
from kernel.intent import Op, State
from kernel.node import NodeId
from kernel.storage import Era, Known, Recording, Recovered, Storage
from kernel.testing.postgres import Server
from kernel.testing.storage.recovery import held
from kernel.testing.storage.world import FAILURE, World, ids
from plugins.storage.postgres.connecting import Target
from plugins.storage.postgres.opening import looked_at, migrate
from plugins.storage.postgres.storage import assembled
from tests.harness.postgres import postgres, postgres_dsn, postgres_servers
from tests.harness.processes import eventually

__all__ = ["postgres", "postgres_dsn", "postgres_servers"]
pytestmark = pytest.mark.anyio
NODE = NodeId("00000000-0000-4000-8000-000000000003")


async def opened(dsn: str) -> Storage:
    target = Target(dsn=dsn)
    await migrate(target, NODE, await looked_at(target, NODE))
    return await assembled(target, Settings(), NODE)


@pytest.fixture
async def storage(postgres_dsn: str) -> AsyncIterator[Storage]:
    storage = await opened(postgres_dsn)
    yield storage
    await storage.close()


@pytest.fixture
async def world(storage: Storage) -> World:
    return await World.built(storage)


async def crash(storage: Storage) -> Era:
    """What a crash leaves of the era, without one; and the next."""
    await storage.sql.run(sa.text("DELETE FROM eras"))
    return await storage.era()


# -- eras ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


async def era_of(server: Server, database: str = "hubs") -> Era:
    storage = await opened(server.dsn(database))
    try:
        return await storage.era()
    finally:
        await storage.close()


async def test_an_orderly_restart_forgets_nothing(server: Server) -> None:
    server.create_database("hubs")
    before = await era_of(server)
    server.restart("fast")
    assert await era_of(server) == before
    assert before.since == 0, "in a new database everything is known"


async def test_a_crash_ends_an_era(server: Server) -> None:
    server.create_database("hubs")
    first = await era_of(server)
    server.restart("immediate")
    second = await era_of(server)
    assert second.id != first.id
    assert second.since > first.since
    server.kill()
    server.start()
    assert (await era_of(server)).since > second.since


async def test_a_backend_that_is_killed_ends_an_era(server: Server) -> None:
    """The server starts anew within its process then, and what it had not written yet is lost all the same."""
    server.create_database("hubs")
    first = await era_of(server)
    started = server.sql("select pg_postmaster_start_time()")
    victim = await asyncpg.connect(server.dsn("hubs"))
    os.kill(victim.get_server_pid(), signal.SIGKILL)
    victim.terminate()

    async def back() -> bool:
        try:
            connection = await asyncpg.connect(server.dsn("hubs"))
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True

    await anyio.sleep(0.5)
    await eventually(back, "a server that takes connections again")
    assert (await era_of(server)).id != first.id
    assert server.sql("select pg_postmaster_start_time()") == started, "its start time tells nothing of that"


async def test_a_failover_ends_an_era(server: Server) -> None:
    server.create_database("hubs")
    first = await era_of(server)
    with server.standby() as standby:
        standby.catch_up()
        server.kill()
        standby.promote()
        assert (await era_of(standby)).id != first.id


async def test_nodes_that_look_together_find_one_era(storage: Storage) -> None:
    found: list[Era] = []

    async def look() -> None:
        found.append(await storage.era())

    await storage.sql.run(sa.text("DELETE FROM eras"))
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(look)
    assert len({era.id for era in found}) == 1


# -- may it have happened? ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [Op.STOP, Op.MESSAGE])
async def test_what_is_older_than_a_crash_may_have_happened(world: World, op: Op) -> None:
    storage = world.storage
    cancelled, expired = [await world.record(op, await world.new_agent()) for _ in range(2)]
    await crash(storage)
    newer = await world.record(op, await world.new_agent())
    for intent, code in ((cancelled, "outcome_unknown"), (newer, "cancelled")):
        ended = (await storage.cancel(intent.id, world.node)).intent
        assert (ended.state, ended.error and ended.error.code) == (State.CANCELLED, code)
    [ended] = (await storage.expire([expired.id], FAILURE, world.node)).intents
    assert (ended.state, ended.error and ended.error.code) == (State.EXPIRED, "outcome_unknown")


async def test_before_anybody_looked_after_a_crash_everything_may_have_happened(world: World) -> None:
    intent = await world.record(Op.STOP, await world.new_agent())
    await world.storage.sql.run(sa.text("DELETE FROM eras"))
    ended = (await world.storage.cancel(intent.id, world.node)).intent
    assert ended.error is not None
    assert ended.error.code == "outcome_unknown"


async def test_past_its_deadline_too(world: World) -> None:
    intent = await world.record(Op.STOP, await world.new_agent(), deadline_in=0.5)
    await crash(world.storage)
    await anyio.sleep(0.6)
    [ended] = (await world.storage.expire_due(world.node, 10)).intents
    assert (ended.id, ended.error and ended.error.code) == (intent.id, "outcome_unknown")


async def test_a_creation_that_may_have_happened_leaves_its_agent(world: World) -> None:
    agent, intent = await world.creation()
    message = await world.record(Op.MESSAGE, agent)
    await crash(world.storage)
    await world.storage.cancel(intent.id, world.node)
    assert (await world.read_agent(agent.id)).phase is Phase.ERROR
    assert (await world.read(message.id)).state is State.PENDING, "its agent may be there"


async def test_a_call_that_may_have_been_claimed_waits_for_its_broker(world: World) -> None:
    """As one does that was: nobody at home is no reason any more."""
    storage = world.storage
    await world.record(Op.STOP, await world.new_agent())
    await world.disconnect()
    await crash(storage)
    newer = await world.record(Op.STOP, await world.new_agent())
    assert ids((await storage.expire_unheld(world.node, 0.0, 10)).intents) == [newer.id]


async def test_a_start_that_may_have_been_claimed_is_not_superseded(world: World) -> None:
    agent = await world.new_agent(Phase.STOPPED)
    start = await world.record(Op.START, agent)
    await crash(world.storage)
    stop = world.intent(Op.STOP, agent)
    recorded = await world.storage.record(Recording(intents=(stop,), supersedes_starts=True))
    assert recorded.superseded == ()
    assert ids((await world.claim()).intents) == [start.id]


# -- claims under way ---------------------------------------------------------------------------------------


async def test_it_waits_for_a_claim_that_is_under_way(world: World, postgres_dsn: str) -> None:
    """Its node has given it up: whatever it takes would be in nobody's hands."""
    intent = await world.record(Op.STOP, await world.new_agent())
    other = await asyncpg.connect(postgres_dsn)
    await other.execute("BEGIN")
    await other.execute("SELECT 1 FROM runtime_brokers WHERE id = $1 FOR SHARE", world.broker.id)
    taken = (
        "UPDATE broker_dispatch SET state = 'in_progress', attempts = 1, claimed_by = $2, claimed_session = $3, "
        "claimed_epoch = $4 WHERE id = $1"
    )
    session = world.session
    await other.execute(taken, intent.id, session.node_id, session.session_id, session.epoch)
    over, found = anyio.Event(), list[Recovered]()

    async def recover() -> None:
        found.append(await world.storage.recover(Known(session=session)))
        over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recover)
        await anyio.sleep(0.5)
        waited = not over.is_set()
        await other.execute("COMMIT")
        with anyio.fail_after(30):
            await over.wait()
    await other.close()
    assert (waited, found[0].strangers) == (True, held(await world.read(intent.id)))
