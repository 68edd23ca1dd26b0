"""Hands what this hub holds to the other hubs, and waits until they have it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

import anyio

from kernel import wire
from kernel.clock import Clock
from kernel.dispatch import Dispatcher
from kernel.ends import Ends
from kernel.errors import PointsmanError, StorageUnavailable
from kernel.intent import Lane
from kernel.lanes import Lanes, Work
from kernel.link import Link
from kernel.links import Links
from kernel.pulse import Pulse
from kernel.readiness import Readiness
from kernel.storage import Nodes
from kernel.waiters import Waiters

log = logging.getLogger(__name__)

LOOK = 0.05
"""Seconds between two looks at what is still here."""
ASK = 1.0
"""Seconds for which an answer about the other hubs is fresh."""
LEAST_PACE = 10.0
"""Sessions a second that a hub takes whatever it has measured: a quiet one has seen no more than came."""
RESTART = 1.0
"""Seconds that the next hub here needs at least, until brokers may dial it."""
GOODBYE = 5.0
"""Seconds for which sockets that were told to close may still stand."""


class Handover:
    """Not ready → no new sockets → LOCAL calls are recorded → brokers go to another hub, before this one lets them go
    → callers who wait here hear how it ended, as long as there is time (design/dispatch.md section 10)."""

    def __init__(
        self,
        *,
        storage: Nodes,
        links: Links,
        dispatcher: Dispatcher,
        lanes: Lanes,
        ends: Ends,
        waiters: Waiters,
        readiness: Readiness,
        pulse: Pulse,
        clock: Clock,
    ) -> None:
        self._storage = storage
        self._links = links
        self._dispatcher = dispatcher
        self._lanes = lanes
        self._ends = ends
        self._waiters = waiters
        self._readiness = readiness
        self._pulse = pulse
        self._clock = clock
        self._alone = False
        self._asked_at = float("-inf")

    def begin(self) -> None:
        """From now on this hub takes nothing new."""
        self._readiness.draining = self._pulse.draining = True
        self._links.draining = self._dispatcher.draining = True

    async def run(self, limit: float) -> None:
        """Done when nothing is held here any more, at the latest about `limit` seconds from now."""
        self.begin()
        began = self._clock.monotonic()
        until = began + limit
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pulse.drain)
            tasks.start_soon(self._write_down_all)
        await self._let_go(until)
        self._links.hang_up_all(wire.Close.DRAINING, "draining")
        with anyio.move_on_after(GOODBYE):
            await self._links.empty()
        log.info("every broker has left after %.2f s", self._clock.monotonic() - began)
        if not self._alone:
            with anyio.move_on_after(until - self._clock.monotonic()):
                await self._waiters.nobody()
        self._waiters.send_away()
        log.info("nobody waits here any more after %.2f s", self._clock.monotonic() - began)

    async def _write_down_all(self) -> None:
        """LOCAL calls in flight get their row, which ends them wherever their broker goes. A database that is away
        costs the stop one deadline, not one for each."""
        lanes: defaultdict[tuple[str, Lane], list[Work]] = defaultdict(list)
        for work in self._lanes.unrecorded():
            lanes[work.intent.agent_id, work.intent.lane].append(work)
        async with anyio.create_task_group() as tasks:
            for works in lanes.values():
                tasks.start_soon(self._write_down, works)

    async def _write_down(self, works: Sequence[Work]) -> None:
        """Those of one lane in their order: whoever claims them next goes by it."""
        for work in works:
            try:
                await self._ends.write_down(work)
            except PointsmanError as fault:
                log.error("dispatch %s could not be recorded before the stop: %s", work.intent.id, fault.message)
                if isinstance(fault, StorageUnavailable):
                    return

    async def _let_go(self, until: float) -> None:
        """Each link is told once what it has to do; then wait until it is gone, or quiet for good."""
        while self._links.all() and (left := until - self._clock.monotonic()) > 0:
            await self._ask_who_else()
            self._tell([link for link in self._links.all() if link.open], left)
            for link in self._links.all():
                if link.quiet and link.settled:
                    link.hang_up(wire.Close.DRAINING, "draining")
            await anyio.sleep(min(LOOK, left))

    async def _ask_who_else(self) -> None:
        """Without another hub that takes brokers there is nobody to wait for."""
        if self._clock.monotonic() - self._asked_at < ASK:
            return
        self._asked_at = self._clock.monotonic()
        try:
            nodes = await self._storage.list_nodes()
        except StorageUnavailable:
            log.warning("who else takes brokers is not known: the database does not answer")
            return
        self._alone = not any(node.lost_at is None and not node.draining for node in nodes)

    def _tell(self, links: list[Link], left: float) -> None:
        moving = [link for link in links if link.can(wire.RECONNECT) and link.can(wire.DEDUPE)]
        for link in links:
            link.quiet = link.quiet or not link.can(wire.DEDUPE) or not link.can(wire.RECONNECT)
        if self._alone:
            self._send_home(moving)
        else:
            self._send_on([link for link in moving if not link.advised], left)

    def _send_on(self, links: list[Link], left: float) -> None:
        """Spread over the time in which hubs are seen to take as many; those told last have time, too."""
        slot = min(1.0 / max(LEAST_PACE, self._links.pace.best), left / 2 / max(1, len(links)))
        for place, link in enumerate(links):
            link.advise(place * slot, left)

    def _send_home(self, links: list[Link]) -> None:
        """Nobody else is there. What they have in flight is pending at once, and they come back to the next hub that
        starts here, not all in one moment."""
        for place, link in enumerate(links):
            link.advise(RESTART + place / max(LEAST_PACE, self._links.pace.best), 0.0)
            link.hang_up(wire.Close.DRAINING, "draining")
