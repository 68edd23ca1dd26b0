"""Turns signals, and the poll that makes up for lost ones, into work that is looked at."""

from __future__ import annotations

import logging
from typing import Protocol

import anyio
import msgspec

from kernel import wire
from kernel.clock import Clock
from kernel.dispatch import Delivery
from kernel.drain import Drain
from kernel.errors import StorageUnavailable
from kernel.latch import Latch
from kernel.links import Links
from kernel.node import NodeId
from kernel.signals import BusState, Signal, SignalKind, Signals
from kernel.storage import Storage
from kernel.waiters import Waiters

log = logging.getLogger(__name__)

GLANCE = 0.25
"""Seconds between two glances at the bus's state while the poll rests: it may go blind meanwhile."""
AGAIN = 0.25
"""Seconds until what signals asked for is tried again."""


class BusSettings(Protocol):
    """Seconds between two polls, by the bus's state."""

    @property
    def poll_healthy(self) -> float: ...
    @property
    def poll_slow(self) -> float: ...
    @property
    def poll_blind(self) -> float: ...


class Errands(msgspec.Struct):
    """What signals ask for that must be read from the rows. What is told while some are run is done with the next."""

    missed: bool = False
    ended: set[str] = msgspec.field(default_factory=set)
    moved: set[str] = msgspec.field(default_factory=set)
    changed: set[str] = msgspec.field(default_factory=set)


class Wakeups:
    """A lost signal costs one poll's pause, never the work."""

    def __init__(
        self,
        *,
        signals: Signals,
        storage: Storage,
        node_id: NodeId,
        clock: Clock,
        settings: BusSettings,
        drain: Drain,
        delivery: Delivery,
        waiters: Waiters,
        links: Links,
    ) -> None:
        self._signals = signals
        self._storage = storage
        self._node_id = node_id
        self._clock = clock
        self._settings = settings
        self._drain = drain
        self._delivery = delivery
        self._waiters = waiters
        self._links = links
        self._errands = Errands()
        self._asked = Latch()
        self._away = False
        """Whether it was said that the database does not answer."""

    async def listen(self) -> None:
        """Heed signals until cancelled. What needs no row is done at once, whatever the database is at."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run_errands)
            while True:
                for signal in await self._signals.wait(self._clock.monotonic() + self._settings.poll_healthy):
                    self._heed(signal)

    def _heed(self, signal: Signal) -> None:
        match signal.kind:
            case SignalKind.WORK:
                self._drain.wake(signal.broker_id, signal.ids)
            case SignalKind.PROGRESS:
                for intent_id in signal.ids:
                    self._waiters.progress(intent_id)
            case SignalKind.CANCEL:
                for intent_id in signal.ids:
                    self._delivery.stop_here(intent_id)
            case SignalKind.REVOKED:
                link = self._links.of(signal.broker_id)
                if link and link.session.session_id in signal.ids:
                    link.hang_up(wire.Close.DELETED, "secret_revoked")
            case _:
                self._ask(signal)

    def _ask(self, signal: Signal) -> None:
        match signal.kind:
            case SignalKind.ENDED:
                self._errands.ended.update(signal.ids)
            case SignalKind.MOVED:
                self._errands.moved.add(signal.broker_id)
            case SignalKind.CHANGED:
                self._errands.changed.add(signal.broker_id)
            case SignalKind.MISSED:
                self._errands.missed = True
        self._asked.set()

    # -- what is read from the rows ------------------------------------------------------------------------------

    async def _run_errands(self) -> None:
        while True:
            await self._asked.wait()
            self._asked = Latch()
            errands, self._errands = self._errands, Errands()
            try:
                await (self._look() if errands.missed else self._run(errands))
                await self._read_changed(errands.changed)
            except StorageUnavailable as fault:
                self._say_away(fault)
                self._errands.missed = True
                self._errands.changed |= errands.changed
                self._asked.set()
                await anyio.sleep(AGAIN)
            else:
                self._away = False
                if errands.missed and not self._errands.missed:
                    self._signals.caught_up()

    async def _look(self) -> None:
        """Signals may have been lost: look at everything that this node holds, or waits for."""
        await self._wake_pending()
        await self._waiters.read()
        await self._links.renew_once()

    async def _run(self, errands: Errands) -> None:
        if errands.ended:
            await self._waiters.read(errands.ended)
        if errands.moved:
            await self._links.renew_once(errands.moved.pop() if len(errands.moved) == 1 else "")

    async def _read_changed(self, broker_ids: set[str]) -> None:
        """Of a broker that this node holds: it may be paused, deleted, or have another endpoint."""
        for broker_id in broker_ids:
            if self._links.of(broker_id) is None:
                continue
            broker = await self._storage.find_broker(broker_id)
            if broker is None:
                self._links.hang_up(broker_id, wire.Close.DELETED, "deleted")
            else:
                self._links.pause(broker_id, paused=broker.paused)
                await self._links.renew_once(broker_id)
                self._drain.wake(broker_id)

    async def _wake_pending(self) -> None:
        for broker_id in await self._storage.poll(self._node_id):
            self._drain.wake(broker_id)

    # -- the poll ------------------------------------------------------------------------------------------------

    async def poll(self) -> None:
        """One query for all brokers of this node, one for all who wait."""
        while True:
            await self._rest()
            try:
                await self._wake_pending()
                await self._waiters.read()
            except StorageUnavailable as fault:
                self._say_away(fault)
            else:
                self._away = False

    async def _rest(self) -> None:
        """As long as the bus's state allows, a little less by chance: hubs do not ask in step."""
        started = self._clock.monotonic()
        share = 0.8 + self._clock.jitter(0.2)
        while (left := started + self._pause() * share - self._clock.monotonic()) > 0:
            await anyio.sleep(min(left, GLANCE))

    def _pause(self) -> float:
        match self._signals.state():
            case BusState.HEALTHY:
                return self._settings.poll_healthy
            case BusState.SLOW:
                return self._settings.poll_slow
            case BusState.BLIND:
                return self._settings.poll_blind

    def _say_away(self, fault: StorageUnavailable) -> None:
        if not self._away:
            log.warning("nobody is woken for now, it is made up for later: %s", fault.message)
        self._away = True
