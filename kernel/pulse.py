"""Beats this node's row, and knows whether this node may judge others."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from kernel.clock import Clock
from kernel.errors import StorageUnavailable
from kernel.node import Node, NodeId
from kernel.storage import Nodes

log = logging.getLogger(__name__)

LATE = 0.75
"""A beat so late, in parts of the silence that makes a node lost, is a gap."""


def none() -> int:
    """Of connections that cannot break."""
    return 0


class Pulse:
    """A node is alive as long as it beats. One whose own beats had a gap, or whose connections to the database broke,
    judges nobody for a while (design/dispatch.md section 4): an outage of the database costs no broker its socket."""

    def __init__(
        self,
        storage: Nodes,
        node: Node,
        clock: Clock,
        *,
        every: float,
        lost_after: float,
        grace: float,
        breaks: Callable[[], int] = none,
    ) -> None:
        """`breaks` counts the connections to the database that broke."""
        self._storage = storage
        self._node = node
        self._clock = clock
        self._every = every
        self._lost_after = lost_after
        self._grace = grace
        self._breaks = breaks
        self._breaks_seen = 0
        self._beat_at: float | None = None
        self._gap_ended_at = float("-inf")
        self._beating = anyio.CancelScope()
        self._told_to_drain = anyio.Event()
        self.draining = False

    @property
    def node_id(self) -> NodeId:
        return self._node.id

    @property
    def steady(self) -> bool:
        """The last beat is recent: what this node believes about its sessions is most likely still true."""
        return self._beat_age < self._lost_after

    @property
    def calm(self) -> bool:
        """For a while nothing happened by which the rows could tell less than is true: what looks untaken is so."""
        if self._breaks() != self._breaks_seen:
            self._breaks_seen = self._breaks()
            self.shake()
        return self.steady and self._clock.monotonic() - self._gap_ended_at >= self._grace

    def shake(self) -> None:
        """Something of that kind happened."""
        self._gap_ended_at = self._clock.monotonic()

    @property
    def may_judge(self) -> bool:
        """Whether it may call others lost: it is calm, and its own next beat is not late. While the database stands
        still everybody's is, and who is heard first afterwards would find the others silent."""
        return self.calm and self._beat_age < self.patience

    @property
    def patience(self) -> float:
        """Seconds within which what judges others must be done: with a beat's pause less than what makes one lost."""
        return self._lost_after / 2

    @property
    def _beat_age(self) -> float:
        return float("inf") if self._beat_at is None else self._clock.monotonic() - self._beat_at

    async def start(self) -> None:
        await self._storage.join_node(msgspec.structs.replace(self._node, draining=self.draining))
        self._beat_at = self._clock.monotonic()

    async def run(self, forgotten: Callable[[], Awaitable[None]]) -> None:
        """Beat until stopped. `forgotten` is awaited when the row is gone: others judged this node lost."""
        with self._beating:
            while True:  # the first beat comes at once: it tells the database's time
                await self._try_beat(forgotten)
                await anyio.sleep(self._every)

    async def _try_beat(self, forgotten: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._beat(forgotten)
        except StorageUnavailable:
            self._gap_ended_at = self._clock.monotonic()
            log.warning("beat not written: the database does not answer")

    async def _beat(self, forgotten: Callable[[], Awaitable[None]]) -> None:
        row = await self._beat_once()
        self._note_beat()
        if row is None:
            await self._rejoin(forgotten)
        elif row.draining and not self.draining:
            self._told_to_drain.set()

    async def _beat_once(self) -> Node | None:
        """Each beat tells the database's time, too."""
        asked = self._clock.monotonic()
        row = await self._storage.beat(self.node_id, self.draining)
        if row:
            self._clock.follow(row.beat_at, asked)
        return row

    def _note_beat(self) -> None:
        """Others may have fared worse by what made this one late: near a gap is a gap."""
        if self._beat_age >= LATE * self._lost_after:
            self._gap_ended_at = self._clock.monotonic()
        self._beat_at = self._clock.monotonic()

    async def _rejoin(self, forgotten: Callable[[], Awaitable[None]]) -> None:
        log.warning("this node was judged lost: it drops its sessions and joins again")
        self._gap_ended_at = self._clock.monotonic()
        self._beat_at = None
        await forgotten()
        await self.start()

    async def told_to_drain(self) -> None:
        """Until somebody asks this node to hand over what it holds (`pointsman node drain`)."""
        await self._told_to_drain.wait()

    async def drain(self) -> None:
        """Tell the others at once that this node takes nothing more."""
        self.draining = True
        try:
            await self._storage.beat(self.node_id, draining=True)
        except StorageUnavailable:
            log.warning("the others are not told yet that this node drains: the database does not answer")

    async def stop(self) -> None:
        """The last thing that a node does: no beat follows, and its row is gone."""
        self._beating.cancel()
        await self._storage.remove_node(self.node_id)
