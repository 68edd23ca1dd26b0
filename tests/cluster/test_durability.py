"""What waits for the disk and what need not: calls and LOCAL ends always, claims and ends only where nothing makes them
good."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kernel.config import Settings
from kernel.intent import Op
from kernel.node import NodeId
from kernel.testing.postgres import Server
from kernel.testing.storage.world import World
from plugins.storage.postgres.connecting import Connection, Target, connect
from plugins.storage.postgres.opening import looked_at, migrate
from plugins.storage.postgres.storage import assembled

pytestmark = pytest.mark.anyio

NODE = NodeId("00000000-0000-4000-8000-000000000001")
UNHURRIED = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "autovacuum": "off"}
"""Nothing but a commit that waits for it writes the log to the disk."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(durable=True, settings=UNHURRIED) as server:
        yield server


@pytest.fixture
async def world(server: Server) -> AsyncIterator[World]:
    dsn = server.create_database("durability")
    target = Target(dsn=dsn)
    await migrate(target, NODE, await looked_at(target, NODE))
    storage = await assembled(target, Settings(), NODE)
    yield await World.built(storage)
    await storage.close()
    server.drop_database("durability")


@pytest.fixture
async def watcher(world: World, server: Server) -> AsyncIterator[Connection]:
    connection = await connect(Target(dsn=server.dsn("durability")), "watcher", NODE)
    yield connection
    connection.terminate()


async def unwritten(watcher: Connection) -> bool:
    """Whether something was committed that a crash of the server would undo."""
    return bool(await watcher.fetchval("SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()"))


async def test_a_recorded_call_is_on_the_disk(world: World, watcher: Connection) -> None:
    for op in (Op.STOP, Op.MESSAGE):
        await world.record(op, await world.new_agent())
        assert not await unwritten(watcher)


@pytest.mark.parametrize("lazily", [True, False])
async def test_a_claim_waits_for_the_disk_unless_it_may_be_undone(
    world: World, watcher: Connection, lazily: bool
) -> None:
    await world.record(Op.STOP, await world.new_agent())
    assert len((await world.claim(lazily=lazily)).intents) == 1
    assert await unwritten(watcher) is lazily


@pytest.mark.parametrize("lazily", [True, False])
async def test_an_end_waits_for_the_disk_unless_it_may_be_undone(
    world: World, watcher: Connection, lazily: bool
) -> None:
    intent = await world.claimed(Op.STOP, await world.new_agent())
    assert (await world.end(intent, lazily=lazily)).accepted
    assert await unwritten(watcher) is lazily


async def test_a_local_call_is_on_the_disk_with_its_end(world: World, watcher: Connection) -> None:
    new = world.intent(Op.STOP, await world.new_agent())
    assert (await world.storage.insert_ended(new, world.ending(new, lazily=True))).accepted
    assert not await unwritten(watcher)
