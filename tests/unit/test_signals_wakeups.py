"""What a node does when another one signals, one kind after the other; and what it does when signals were lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from kernel.clock import SYSTEM
from kernel.config import Settings
from kernel.errors import StorageUnavailable
from kernel.node import NodeId
from kernel.signals import MISSED, BusState, InProcessSignals, Signal, SignalKind
from kernel.wakeups import Wakeups

pytestmark = pytest.mark.anyio


class Bus(InProcessSignals):
    """In process; it can say that it is blind."""

    def __init__(self) -> None:
        super().__init__(SYSTEM)
        self.says = BusState.HEALTHY
        self.caught = 0

    def state(self) -> BusState:
        return self.says

    def caught_up(self) -> None:
        self.caught += 1


class Node:
    """One node's wake-ups, with everything that they would wake written down instead."""

    def __init__(self, **bus: float) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.bus = Bus()
        self.pending: list[str] = []
        self.brokers: dict[str, Any] = {}
        self.away = False
        self.held: dict[str, Any] = {}
        settings = {"poll_healthy": 600.0, "poll_slow": 600.0, "poll_blind": 600.0, **bus}
        wiring: Any = self
        self.wakeups = Wakeups(
            signals=self.bus,
            storage=wiring,
            node_id=NodeId("me"),
            clock=SYSTEM,
            settings=SimpleNamespace(**settings),
            drain=wiring,
            delivery=wiring,
            waiters=wiring,
            links=wiring,
        )

    def holds(self, broker_id: str, session_id: str = "s") -> list[tuple[int, str]]:
        """A link of that broker; answers how it was hung up."""
        ends: list[tuple[int, str]] = []
        self.held[broker_id] = SimpleNamespace(
            session=SimpleNamespace(session_id=session_id),
            hang_up=lambda code, reason: ends.append((code, reason)),
        )
        return ends

    def _check(self) -> None:
        if self.away:
            raise StorageUnavailable

    # -- the storage

    async def poll(self, node_id: str) -> list[str]:
        self._check()
        self.did.append(("poll",))
        return self.pending

    async def find_broker(self, broker_id: str) -> Any:
        self._check()
        return self.brokers.get(broker_id)

    # -- drain, delivery, waiters

    def wake(self, broker_id: str, ids: Sequence[str] = ()) -> None:
        self.did.append(("wake", broker_id, *ids))

    def stop_here(self, intent_id: str) -> None:
        self.did.append(("stop", intent_id))

    def progress(self, intent_id: str) -> None:
        self.did.append(("progress", intent_id))

    async def read(self, ids: Iterable[str] | None = None) -> None:
        self._check()
        self.did.append(("read", None if ids is None else sorted(ids)))

    # -- links

    def of(self, broker_id: str) -> Any:
        return self.held.get(broker_id)

    async def renew_once(self, broker_id: str = "") -> None:
        self._check()
        self.did.append(("renew", broker_id))

    def hang_up(self, broker_id: str, code: int, reason: str) -> None:
        self.held[broker_id].hang_up(code, reason)

    def pause(self, broker_id: str, *, paused: bool) -> None:
        self.did.append(("pause", broker_id, paused))

    # -- running

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.wakeups.listen)
            yield
            tasks.cancel_scope.cancel()

    async def heeds(self, *signals: Signal, until: Callable[[], bool] | None = None) -> list[tuple[Any, ...]]:
        """What it does about these."""
        async with self.listening():
            for signal in signals:
                self.bus.signal(None, signal)
            await eventually(until or (lambda: bool(self.did)))
            await anyio.sleep(0.02)
        return self.did


async def eventually(true: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not true():
            await anyio.sleep(0.002)


def signal(kind: SignalKind, broker_id: str = "", *ids: str) -> Signal:
    return Signal(kind=kind, broker_id=broker_id, ids=ids)


async def test_work_wakes_the_drain_of_its_broker() -> None:
    assert await Node().heeds(signal(SignalKind.WORK, "b", "i")) == [("wake", "b", "i")]


async def test_progress_resets_the_windows_of_those_who_wait() -> None:
    assert await Node().heeds(signal(SignalKind.PROGRESS, "", "i", "j")) == [("progress", "i"), ("progress", "j")]


async def test_cancel_stops_what_is_in_hand_here() -> None:
    assert await Node().heeds(signal(SignalKind.CANCEL, "", "i")) == [("stop", "i")]


async def test_ends_that_are_told_in_one_moment_are_read_in_one_query() -> None:
    told = (signal(SignalKind.ENDED, "", "i"), signal(SignalKind.ENDED, "", "j", "k"))
    assert await Node().heeds(*told) == [("read", ["i", "j", "k"])]


async def test_moved_broker_is_looked_up_alone_and_many_are_in_one_statement() -> None:
    assert await Node().heeds(signal(SignalKind.MOVED, "b")) == [("renew", "b")]
    assert await Node().heeds(signal(SignalKind.MOVED, "b"), signal(SignalKind.MOVED, "c")) == [("renew", "")]


@pytest.mark.parametrize("paused", [True, False])
async def test_changed_broker_is_read_by_its_holder(paused: bool) -> None:
    node = Node()
    node.holds("b")
    node.brokers["b"] = SimpleNamespace(paused=paused)
    did = await node.heeds(signal(SignalKind.CHANGED, "b"), until=lambda: ("wake", "b") in node.did)
    assert did == [("pause", "b", paused), ("renew", "b"), ("wake", "b")]


async def test_deleted_broker_loses_its_socket_on_the_node_that_holds_it() -> None:
    node = Node()
    ends = node.holds("b")
    await node.heeds(signal(SignalKind.CHANGED, "b"), until=lambda: bool(ends))
    assert ends == [(4410, "deleted")]


async def test_changed_broker_is_none_of_the_business_of_a_node_that_does_not_hold_it() -> None:
    node = Node()
    assert await node.heeds(signal(SignalKind.CHANGED, "b"), signal(SignalKind.WORK, "c")) == [("wake", "c")]


async def test_session_on_a_secret_that_was_replaced_is_closed_and_a_newer_one_stays() -> None:
    node = Node()
    old, newer = node.holds("b", "old"), node.holds("c", "newer")
    await node.heeds(
        signal(SignalKind.REVOKED, "b", "old"), signal(SignalKind.REVOKED, "c", "old"), until=lambda: bool(old)
    )
    assert old == [(4410, "secret_revoked")]
    assert newer == []


async def test_who_missed_signals_drains_what_it_holds_and_wakes_all_who_wait() -> None:
    node = Node()
    node.pending = ["b", "c"]
    did = await node.heeds(MISSED, until=lambda: bool(node.bus.caught))
    assert did == [("poll",), ("wake", "b"), ("wake", "c"), ("read", None), ("renew", "")]
    assert node.bus.caught == 1


async def test_bus_is_told_only_when_everything_was_looked_at() -> None:
    node = Node()
    node.away = True
    async with node.listening():
        node.bus.signal(None, MISSED)
        await anyio.sleep(0.4)
        assert node.bus.caught == 0
        node.away = False
        await eventually(lambda: node.bus.caught == 1)
    assert ("read", None) in node.did


async def test_what_needs_no_row_is_heeded_while_the_database_is_away() -> None:
    node = Node()
    node.away = True
    async with node.listening():
        node.bus.signal(None, signal(SignalKind.ENDED, "", "i"))
        await anyio.sleep(0.05)
        node.bus.signal(None, signal(SignalKind.CANCEL, "", "j"))
        await eventually(lambda: ("stop", "j") in node.did)
        node.away = False
        await eventually(lambda: ("read", None) in node.did)


async def test_change_that_could_not_be_read_is_read_once_the_database_is_back() -> None:
    node = Node()
    ends = node.holds("b")
    node.away = True
    async with node.listening():
        node.bus.signal(None, signal(SignalKind.CHANGED, "b"))
        await anyio.sleep(0.05)
        node.away = False
        await eventually(lambda: bool(ends))


async def test_poll_comes_as_often_as_the_bus_needs_it_and_notices_that_it_went_blind() -> None:
    node = Node(poll_healthy=600.0, poll_blind=0.02)
    node.pending = ["b"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.wakeups.poll)
        await anyio.sleep(0.1)
        assert node.did == []
        node.bus.says = BusState.BLIND
        await eventually(lambda: node.did.count(("wake", "b")) > 3)
        assert node.did[:3] == [("poll",), ("wake", "b"), ("read", None)]
        tasks.cancel_scope.cancel()


async def test_poll_goes_on_after_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(poll_healthy=0.01)
    node.away = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.wakeups.poll)
        await anyio.sleep(0.2)
        node.away = False
        await eventually(lambda: ("read", None) in node.did)
        tasks.cancel_scope.cancel()
    assert len(caplog.records) == 1, "an outage is told once"


def test_defaults_are_those_of_the_contract() -> None:
    bus = Settings().bus
    assert (bus.probe, bus.poll_healthy, bus.poll_slow, bus.poll_blind) == (5.0, 2.0, 0.25, 0.1)
    assert bus.rekick == (0.05, 0.2, 0.8)
