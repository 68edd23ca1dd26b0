"""Signals between nodes on a real PostgreSQL: they arrive, few NOTIFYs carry many, and nothing depends on them."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import asyncpg
import pytest

from kernel.errors import StorageUnavailable
from kernel.node import NodeId
from kernel.signals import BusState, Signal, SignalKind
from kernel.testing.postgres import Server
from plugins.storage.postgres.bus import EVERY_NODE, channel_of
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.dialling import Connect, Role
from tests.cluster.buses import Bus, dial, running, until, work
from tests.harness.pooler import Pooler

pytestmark = pytest.mark.anyio


def on(dsn: str, *, probe: float = 0.2) -> Bus:
    return Bus(lambda node_id: dial(dsn, node_id), probe=probe)


async def test_signal_arrives_at_the_node_that_it_names(every_postgres_dsn: str) -> None:
    one, two, three = (on(every_postgres_dsn) for _ in range(3))
    async with running(one, two, three):
        one.signals.signal(two.node_id, work("i1", "i2"))
        await until(lambda: two.heard == [work("i1", "i2")])
        one.signals.signal(three.node_id, Signal(kind=SignalKind.ENDED, ids=("e",)))
        await until(lambda: bool(three.heard))
        assert one.heard == []
        assert two.heard == [work("i1", "i2")]
        assert three.heard == [Signal(kind=SignalKind.ENDED, ids=("e",))]


async def test_signal_to_all_is_heard_once_by_each_node_and_by_its_sender(postgres_dsn: str) -> None:
    one, two, three = (on(postgres_dsn) for _ in range(3))
    async with running(one, two, three):
        one.signals.signal(None, work("i1"))
        await until(lambda: all(bus.heard for bus in (one, two, three)))
        two.signals.signal(one.node_id, work("after"))
        await until(lambda: work("after") in one.heard)
        assert [one.heard, two.heard, three.heard] == [[work("i1"), work("after")], [work("i1")], [work("i1")]]


async def test_signal_to_itself_does_not_touch_the_database(postgres_dsn: str) -> None:
    one = on(postgres_dsn, probe=600)
    async with running(one):
        before = one.signals._outgoing.statements
        for n in range(100):
            one.signals.signal(one.node_id, work(str(n)))
        await until(lambda: len(one.ids()) == 100)
        await anyio.sleep(0.05)
        assert one.signals._outgoing.statements == before


async def test_signals_of_one_moment_share_a_notify(postgres_dsn: str) -> None:
    one, two, three = (on(postgres_dsn, probe=600) for _ in range(3))
    async with running(one, two, three):
        before = one.signals._outgoing.statements
        for n in range(500):
            one.signals.signal(two.node_id, work(f"w{n}", broker=f"b{n % 7}"))
            one.signals.signal(three.node_id, Signal(kind=SignalKind.ENDED, ids=(f"e{n}",)))
        await until(lambda: len(two.ids()) == 500 and len(three.ids()) == 500)
        assert one.signals._outgoing.statements - before == 1


async def test_more_ids_than_a_payload_holds_all_arrive(postgres_dsn: str) -> None:
    one, two = on(postgres_dsn), on(postgres_dsn)
    ids = {f"00000000-0000-7000-8000-{n:012}" for n in range(2_000)}
    async with running(one, two):
        one.signals.signal(two.node_id, work(*ids))
        await until(lambda: two.ids() == ids)
        assert len(two.heard) >= 10


async def test_what_strangers_notify_is_let_pass(postgres_dsn: str) -> None:
    one, two = on(postgres_dsn), on(postgres_dsn)
    async with running(one, two):
        stranger = await asyncpg.connect(postgres_dsn)
        for payload in ("", "null", "[]", "{", '["work"]', '["work", 3]', '["later", "n", "b", ["i"]]', "x" * 7_000):
            await stranger.execute("SELECT pg_notify($1, $2)", channel_of(two.node_id), payload)
            await stranger.execute("SELECT pg_notify($1, $2)", EVERY_NODE, payload)
        await stranger.close()
        one.signals.signal(two.node_id, work("ours"))
        await until(lambda: bool(two.heard))
        assert two.heard == [work("ours")]
        assert two.state is not BusState.BLIND


async def test_node_has_one_connection_that_listens_and_one_that_signals(postgres_dsn: str, postgres: Server) -> None:
    one = on(postgres_dsn)
    async with running(one):
        named = postgres.sql(
            f"select application_name from pg_stat_activity where application_name like '%:{one.node_id}' order by 1"
        )
        assert named == [[f"pointsman-listen:{one.node_id}"], [f"pointsman-signal:{one.node_id}"]]
        last = postgres.sql(
            "select query from pg_stat_activity where application_name = " + f"'pointsman-listen:{one.node_id}'"
        )
        assert last == [[f'LISTEN "{EVERY_NODE}"']], "its listener is asked nothing else"
    await until(
        lambda: not postgres.sql(f"select 1 from pg_stat_activity where application_name like '%:{one.node_id}'")
    )


# -- what breaks -------------------------------------------------------------------------------------------------


async def test_listener_that_was_killed_listens_again_and_everything_is_looked_at(
    postgres_dsn: str, postgres: Server
) -> None:
    one, two = on(postgres_dsn), on(postgres_dsn)
    async with running(one, two):
        looks = two.looks
        assert postgres.terminate(f"pointsman-listen:{two.node_id}") == 1
        await until(lambda: two.signals.reconnects() == 1)
        await until(lambda: two.looks > looks)
        await two.sees()
        one.signals.signal(two.node_id, work("i1"))
        await until(lambda: two.heard == [work("i1")])
        assert one.signals.reconnects() == 0


async def test_signal_connection_that_was_killed_costs_nobody_an_error(postgres_dsn: str, postgres: Server) -> None:
    one, two = on(postgres_dsn), on(postgres_dsn)
    async with running(one, two):
        assert postgres.terminate(f"pointsman-signal:{one.node_id}") == 1

        async def again() -> None:
            while not two.heard:
                one.signals.signal(two.node_id, work("i1"))
                await anyio.sleep(0.01)

        with anyio.fail_after(60):
            await again()
        await one.sees()


class Gate:
    """Dials as the storage does, and holds the listener's LISTEN back while it is closed."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.open = anyio.Event()
        self.open.set()
        self.held = anyio.Event()

    def dial(self, node_id: str) -> Connect:
        dialled = dial(self.dsn, node_id)

        async def one(role: Role) -> Connection:
            connection = await dialled(role)
            if role == "listen":
                connection.__class__ = Held
                connection.gate = self  # type: ignore[attr-defined]
            return connection

        return one

    def close(self) -> None:
        self.open, self.held = anyio.Event(), anyio.Event()


class Held(Connection):
    """It is open, but does not listen before its gate is open."""

    gate: Gate

    async def add_listener(self, channel: str, callback: object) -> None:
        self.gate.held.set()
        await self.gate.open.wait()
        await super().add_listener(channel, callback)  # type: ignore[arg-type]


async def test_everything_is_looked_at_after_listen_and_not_before(postgres_dsn: str, postgres: Server) -> None:
    """What is written and signalled until the new connection listens is lost to it: a look before LISTEN misses it."""
    gate = Gate(postgres_dsn)
    one, two = on(postgres_dsn), Bus(gate.dial)
    async with running(one, two):
        gate.close()
        looks = two.looks
        postgres.terminate(f"pointsman-listen:{two.node_id}")
        await gate.held.wait()
        one.signals.signal(two.node_id, work("lost"))
        await anyio.sleep(0.3)
        assert two.looks == looks, "nobody looks while nobody listens"
        assert two.state is BusState.BLIND
        gate.open.set()
        await until(lambda: two.looks == looks + 1)
        assert two.heard == [], "the signal itself is lost, only the look finds what it meant"
        one.signals.signal(two.node_id, work("heard"))
        await until(lambda: two.heard == [work("heard")])


async def test_bus_is_blind_until_what_was_missed_is_looked_at(postgres_dsn: str, postgres: Server) -> None:
    one = on(postgres_dsn)
    async with running(one):
        one.may_catch_up = anyio.Event()
        looks = one.looks
        postgres.terminate(f"pointsman-listen:{one.node_id}")
        await until(lambda: one.looks > looks)
        await until(lambda: "still being looked for" in one.signals.trouble())
        assert one.state is BusState.BLIND
        one.may_catch_up.set()
        await one.sees()
        assert one.signals.trouble() == ""


async def test_look_that_was_asked_for_on_a_former_connection_does_not_count(
    postgres_dsn: str, postgres: Server
) -> None:
    one = on(postgres_dsn)
    async with running(one):
        one.may_catch_up = anyio.Event()
        looks = one.looks
        postgres.terminate(f"pointsman-listen:{one.node_id}")
        await until(lambda: one.looks == looks + 1)
        postgres.terminate(f"pointsman-listen:{one.node_id}")
        await until(lambda: one.signals.reconnects() == 2)
        one.signals.caught_up()
        assert one.state is BusState.BLIND
        one.may_catch_up.set()
        await until(lambda: one.looks == looks + 2)
        await one.sees()


@pytest.fixture
def pooled(postgres: Server, postgres_dsn: str) -> Iterator[str]:
    """The DSN of a pooler in transaction mode before the same database."""
    with Pooler(postgres.port) as pooler:
        yield pooler.dsn(postgres_dsn.rpartition("/")[2])


async def test_signals_go_out_through_a_pooler_and_come_in_past_it(postgres_dsn: str, pooled: str) -> None:
    one, two = (
        Bus(lambda node_id: dial(pooled, node_id, pooled=True, listen_dsn=postgres_dsn), probe=0.2) for _ in range(2)
    )
    async with running(one, two):
        for n in range(20):
            one.signals.signal(two.node_id, work(str(n)))
            await anyio.sleep(0.01)
        await until(lambda: two.ids() == {str(n) for n in range(20)})
        assert (one.signals.reconnects(), two.signals.reconnects()) == (0, 0)


async def test_listener_behind_a_pooler_is_found_out_and_the_setting_is_named(
    pooled: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = Bus(lambda node_id: dial(pooled, node_id, pooled=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        await until(lambda: one.signals.reconnects() >= 2)
        assert one.state is BusState.BLIND
        assert "listen_dsn" in one.signals.trouble()
        tasks.cancel_scope.cancel()
    told = [record.message for record in caplog.records if "blind" in record.message]
    assert len(told) == 1
    assert "listen_dsn" in told[0]


class Nowhere:
    """A database that cannot be reached, for both roles or for one."""

    def __init__(self, dsn: str, *roles: Role) -> None:
        self.dsn = dsn
        self.roles = roles

    def dial(self, node_id: str) -> Connect:
        dialled = dial(self.dsn, node_id)

        async def one(role: Role) -> Connection:
            if role in self.roles:
                raise StorageUnavailable(f"no way for {role}")
            return await dialled(role)

        return one


async def test_bus_that_cannot_send_is_blind_and_nobody_gets_an_error(postgres_dsn: str) -> None:
    one, two = Bus(Nowhere(postgres_dsn, "signal").dial), on(postgres_dsn)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        async with running(two):
            for n in range(30_000):
                one.signals.signal(two.node_id, work(str(n)))
            await until(lambda: one.signals.trouble() == "signals cannot be sent: no way for signal")
            assert one.state is BusState.BLIND
            two.signals.signal(one.node_id, work("still heard"))
            one.signals.signal(one.node_id, work("and its own"))
            await until(lambda: one.ids() == {"still heard", "and its own"})
            assert one.signals._outgoing._outbox.weight <= 10_000
        tasks.cancel_scope.cancel()


async def test_bus_without_a_database_still_carries_its_own_signals() -> None:
    one = Bus(Nowhere("", "signal", "listen").dial)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run)
        one.signals.signal(NodeId("somebody"), work("lost"))
        one.signals.signal(None, work("all"))
        one.signals.signal(one.node_id, work("own"))
        await until(lambda: one.ids() == {"all", "own"})
        await until(lambda: "no way for listen" in one.signals.trouble())
        assert one.state is BusState.BLIND
        tasks.cancel_scope.cancel()
