"""The bus beside a server that freezes, restarts, blocks, or takes no writes: blind in time, and back by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import asyncpg
import pytest

from kernel.clock import SYSTEM
from kernel.signals import BusState
from kernel.testing.postgres import Server
from tests.cluster.buses import Bus, dial, running, until, work

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that these tests may break."""
    with Server() as made:
        yield made


@pytest.fixture
def mended(server: Server) -> Iterator[Server]:
    yield server
    server.thaw()
    server.start()


def on(server: Server) -> Bus:
    return Bus(lambda node_id: dial(server.dsn(), node_id))


async def carries(one: Bus, two: Bus) -> None:
    """A signal of now arrives."""
    name = str(SYSTEM.uuid4())
    one.signals.signal(two.node_id, work(name))
    await until(lambda: name in two.ids())


async def test_frozen_server_is_noticed_and_the_bus_comes_back(mended: Server) -> None:
    one, two = on(mended), on(mended)
    async with running(one, two):
        looks = (one.looks, two.looks)
        mended.freeze()
        started = SYSTEM.monotonic()
        await one.goes_blind()
        await two.goes_blind()
        assert SYSTEM.monotonic() - started < 20, "a probe's patience and its interval, and what a busy machine adds"
        one.signals.signal(two.node_id, work("into the void"))
        await anyio.sleep(1.5)
        assert one.state is BusState.BLIND
        mended.thaw()
        await one.sees()
        await two.sees()
        assert one.looks >= looks[0]
        await carries(one, two)
        await carries(two, one)


async def test_bus_beside_a_frozen_server_is_stopped_all_the_same(mended: Server) -> None:
    one = on(mended)
    with anyio.fail_after(60):
        async with running(one):
            mended.freeze()
            one.signals.signal(None, work("under way"))
            await anyio.sleep(0.1)
            started = SYSTEM.monotonic()
    assert SYSTEM.monotonic() - started < 20, "a goodbye that is not answered takes a second or two"


async def test_restarted_server_is_listened_to_again(mended: Server) -> None:
    one, two = on(mended), on(mended)
    async with running(one, two):
        looks = two.looks
        mended.restart("immediate")
        await until(lambda: two.signals.reconnects() >= 1 and one.signals.reconnects() >= 1)
        await until(lambda: two.looks > looks)
        await one.sees()
        await two.sees()
        await carries(one, two)


async def test_server_that_is_away_for_a_while_is_found_when_it_is_back(mended: Server) -> None:
    one = on(mended)
    async with running(one):
        mended.stop("fast")
        await one.goes_blind()
        await anyio.sleep(1)
        assert one.signals.trouble().startswith("the listener has no connection: ")
        mended.start()
        await one.sees()


@asynccontextmanager
async def notify_held(server: Server) -> AsyncIterator[None]:
    """Somebody in another database commits a NOTIFY with a write, and his flush does not end: he holds the lock that
    every NOTIFY of the cluster needs."""
    other = server.create_database("neighbour")
    hanging = await asyncpg.connect(other)
    await hanging.execute("CREATE TABLE t (n int)")
    server.configure(synchronous_standby_names="nobody")
    await anyio.sleep(0.1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hanging.execute, "BEGIN; INSERT INTO t VALUES (1); NOTIFY elsewhere; COMMIT")
        await until(lambda: bool(server.sql("select 1 from pg_stat_activity where wait_event = 'SyncRep'")))
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                server.configure(synchronous_standby_names="")
    await hanging.close()
    server.drop_database("neighbour")


async def test_lock_that_a_neighbour_holds_makes_the_bus_blind_and_nobody_gets_an_error(mended: Server) -> None:
    one, two = on(mended), on(mended)
    async with running(one, two):
        async with notify_held(mended):
            one.signals.signal(two.node_id, work("held back"))
            await one.goes_blind()
            assert "signals cannot be sent" in one.signals.trouble()
            assert one.signals.reconnects() == 0, "its listener is well"
        await one.sees()
        await two.sees()
        await carries(one, two)


async def test_server_that_became_a_standby_is_refused(mended: Server) -> None:
    with mended.standby() as standby:
        one = on(standby)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            await until(lambda: "standby" in one.signals.trouble())
            assert one.state is BusState.BLIND
            standby.promote()
            await one.sees()
            tasks.cancel_scope.cancel()
