"""Turns signals, and the poll that makes up for lost ones, into work that is looked at."""

from __future__ import annotations

import logging
import random
from typing import Protocol

import anyio

from kernel.clock import Clock
from kernel.dispatch import Dispatcher
from kernel.drain import Drain
from kernel.errors import StorageUnavailable
from kernel.links import Links
from kernel.node import NodeId
from kernel.signals import BusState, Signal, SignalKind, Signals
from kernel.storage import Storage
from kernel.waiters import Waiters

log = logging.getLogger(__name__)


class BusSettings(Protocol):
    """Seconds between two polls, by the bus's state."""

    @property
    def poll_healthy(self) -> float: ...
    @property
    def poll_slow(self) -> float: ...
    @property
    def poll_blind(self) -> float: ...


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
        dispatcher: Dispatcher,
        waiters: Waiters,
        links: Links,
    ) -> None:
        self._signals = signals
        self._storage = storage
        self._node_id = node_id
        self._clock = clock
        self._settings = settings
        self._drain = drain
        self._dispatcher = dispatcher
        self._waiters = waiters
        self._links = links

    async def listen(self) -> None:
        while True:
            for signal in await self._signals.wait(self._clock.monotonic() + self._settings.poll_healthy):
                try:
                    await self._heed(signal)
                except StorageUnavailable:
                    log.warning("a signal was not followed, the poll will: the database does not answer")

    async def _heed(self, signal: Signal) -> None:
        match signal.kind:
            case SignalKind.WORK:
                self._drain.wake(signal.broker_id)
            case SignalKind.ENDED:
                await self._waiters.read(signal.ids)
            case SignalKind.PROGRESS:
                for intent_id in signal.ids:
                    self._waiters.progress(intent_id)
            case SignalKind.CANCEL:
                for intent_id in signal.ids:
                    self._dispatcher.stop_here(intent_id)
            case SignalKind.MOVED:
                await self._links.renew_once(signal.broker_id)

    async def poll(self) -> None:
        """One query for all brokers of this node, one for all who wait."""
        while True:
            await anyio.sleep(self._pause() * random.uniform(0.9, 1.1))
            try:
                for broker_id in await self._storage.poll(self._node_id):
                    self._drain.wake(broker_id)
                await self._waiters.read()
            except StorageUnavailable:
                log.warning("nothing polled: the database does not answer")

    def _pause(self) -> float:
        match self._signals.state():
            case BusState.HEALTHY:
                return self._settings.poll_healthy
            case BusState.SLOW:
                return self._settings.poll_slow
            case BusState.BLIND:
                return self._settings.poll_blind
