"""Puts right what a dead node, a silent broker or a passed deadline left behind; nobody is a leader."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import anyio
import msgspec

from kernel.clock import Clock
from kernel.errors import StorageUnavailable
from kernel.node import NodeId
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.pulse import Pulse
from kernel.storage import Changed, Reaped, Storage, Unfinished
from kernel.waiters import Waiters

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds for which a look at what is unfinished is fresh enough to be told."""
BATCH = 500
"""Rows that one sweep moves in one transaction."""


class SweepSettings(Protocol):
    """Seconds between two runs of each sweep."""

    @property
    def nodes(self) -> float: ...
    @property
    def stuck(self) -> float: ...
    @property
    def messages(self) -> float: ...
    @property
    def history(self) -> float: ...


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds by which the sweeps judge."""

    lost_after: float
    stale_after: float
    reconnect_grace: float
    retention: float


class Sweeps:
    """Each sweep is an idempotent, bounded batch of compare-and-set statements in the storage."""

    def __init__(
        self,
        *,
        storage: Storage,
        observer: Observer,
        waiters: Waiters,
        notices: Notices,
        pulse: Pulse,
        clock: Clock,
        every: SweepSettings,
        spans: Judgement,
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self._storage = storage
        self._observer = observer
        self._waiters = waiters
        self._notices = notices
        self._pulse = pulse
        self._clock = clock
        self._every = every
        self._spans = spans
        self._renew = renew
        self.unfinished = Unfinished(counts={}, stuck_messages=0)
        """As of the last look, for the gauges."""
        self._looked_at = float("-inf")

    @property
    def _node_id(self) -> NodeId:
        return self._pulse.node_id

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._repeat, self._every.nodes, self.nodes)
            tasks.start_soon(self._repeat, self._every.stuck, self.stuck)
            tasks.start_soon(self._repeat, self._every.messages, self.messages)
            tasks.start_soon(self._repeat, self._every.history, self.history)

    async def _repeat(self, seconds: float, sweep: Callable[[], Awaitable[None]]) -> None:
        while True:
            await anyio.sleep(self._clock.jitter(seconds))
            if not self._pulse.may_judge:
                continue
            try:
                await sweep()
            except StorageUnavailable as fault:
                log.warning("a sweep was put off: %s", fault.message)

    async def nodes(self) -> None:
        """Lost nodes, stale affinity, and lifecycle calls that wait for a broker that does not come. What this node
        holds it renews first: after an outage its own sessions look stale too, until it has said that they live."""
        await self._renew()
        reaped = await self._reap()
        for node_id in reaped.lost_nodes:
            log.warning("node %s is lost: what it had in hand is driven again", node_id)
        self._moved(reaped.changed)
        await self._all(lambda: self._storage.expire_unheld(self._node_id, self._spans.reconnect_grace, BATCH))

    async def _reap(self) -> Reaped:
        """Undone when it does not come at once: when the database stood still meanwhile, everybody looks silent."""
        reaped = Reaped()
        with anyio.move_on_after(self._pulse.patience):
            if self._pulse.may_judge:
                reaped = await self._storage.reap(self._node_id, self._spans.lost_after, self._spans.stale_after)
        return reaped

    async def stuck(self) -> None:
        """Pending past the deadline; in progress under an epoch that is gone, and messages to an agent that is."""
        await self._all(lambda: self._storage.expire_due(self._node_id, BATCH))
        await self._all(lambda: self._storage.redrive(self._node_id, BATCH))

    async def messages(self) -> None:
        self.unfinished = await self._storage.unfinished()
        self._looked_at = self._clock.monotonic()

    async def look(self) -> None:
        """For whoever scrapes: as of now, or of a second ago; while the database is away as of the last look."""
        if self._clock.monotonic() - self._looked_at < LOOK_EVERY:
            return
        with suppress(StorageUnavailable):
            await self.messages()

    async def history(self) -> None:
        while await self._storage.prune(self._spans.retention, BATCH) >= BATCH:
            await anyio.sleep(0.05)

    async def _all(self, batch: Callable[[], Awaitable[Changed]]) -> None:
        """Batch after batch until one is not full: what is due today is not left to the next sweep (P1), unless this
        node lost its right to judge meanwhile."""
        while True:
            changed = await batch()
            self._moved(changed)
            if len(changed.intents) < BATCH or not self._pulse.may_judge:
                return

    def _moved(self, changed: Changed) -> None:
        self._observer.tell(changed.transitions)
        ended = [intent for intent in changed.intents if intent.state.ended]
        for intent in ended:
            self._waiters.ended(intent)
        self._notices.ended(*ended)
        for broker_id in dict.fromkeys(intent.broker_id for intent in changed.intents):
            self._notices.wake(broker_id)
