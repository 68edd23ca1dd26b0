"""After the database went away and came back, the rows are made to agree with what this node knows.

A commit that nobody waited for may have been undone by a crash or a failover, and of one whose answer was lost nobody
knows. So for a session in doubt everything that this node has in hand, or ended in the last minutes, is compared with
its rows before it claims again (design/dispatch.md section 7).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

import anyio

from kernel import wire
from kernel.broker import BrokerId
from kernel.clock import Clock
from kernel.ends import Ends
from kernel.errors import StorageUnavailable
from kernel.intent import Intent, IntentId
from kernel.lanes import Lanes, Work
from kernel.link import Link
from kernel.links import Links
from kernel.observe import Observer
from kernel.pulse import Pulse
from kernel.remembered import Ending
from kernel.storage import Era, Held, Known, PutBack, Recovered, Storage

log = logging.getLogger(__name__)

GLANCE = 0.25
"""Seconds between two glances at whether a connection broke."""
AGAIN = 0.5
"""Seconds until a database that does not answer is asked again."""


class Recovery:
    """Watches for what undoes commits, and puts right the rows of each session that it puts in doubt."""

    def __init__(
        self,
        *,
        storage: Storage,
        links: Links,
        lanes: Lanes,
        ends: Ends,
        pulse: Pulse,
        observer: Observer,
        clock: Clock,
        every: float,
        strangers_every: float,
        breaks: Callable[[], int],
    ) -> None:
        """Seconds between two looks at the era, and at what the rows tell to be in this node's hands; `breaks` counts
        the connections to the database that broke."""
        self._storage = storage
        self._links = links
        self._lanes = lanes
        self._ends = ends
        self._pulse = pulse
        self._observer = observer
        self._clock = clock
        self._every = every
        self._strangers_every = strangers_every
        self._breaks = breaks
        self._seen = breaks()
        self._era: Era | None = None
        self._strange: set[Held] = set()
        self._counted_at = clock.monotonic()

    def unsure(self, intent: Intent) -> bool:
        """Whether an earlier claim of it may have been undone: it is older than the era, or that is not known now."""
        known = self._era is not None and self._breaks() == self._seen
        return intent.seq < (self._era.since if known and self._era else math.inf)

    # -- what puts sessions in doubt -----------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            try:
                await self._look()
                await self._rest()
            except StorageUnavailable:
                await anyio.sleep(self._clock.jitter(AGAIN))

    async def _look(self) -> None:
        breaks = self._breaks()
        era = await self._storage.era()
        if self._era is not None and era.id != self._era.id:
            log.warning("the database crashed, or another took its place: its last commits are looked at")
            self._pulse.shake()
            self._doubt_all()
        elif breaks != self._seen:
            self._doubt_all()
        self._era, self._seen = era, breaks
        if self._clock.monotonic() - self._counted_at >= self._strangers_every:
            await self._look_for_strangers()

    async def _rest(self) -> None:
        until = self._clock.monotonic() + self._every
        while self._breaks() == self._seen and (left := until - self._clock.monotonic()) > 0:
            await anyio.sleep(min(left, GLANCE))

    def _doubt_all(self) -> None:
        for link in self._links.all():
            link.doubt()

    async def _look_for_strangers(self) -> None:
        """A claim may be carried out long after it was given up: a server that stood still reads it when it goes on.
        What is found twice is no answer that is still under way."""
        held = await self._storage.in_hand(self._pulse.node_id)
        self._counted_at = self._clock.monotonic()
        strange = {one for one in held if not self._knows(one)}
        for one in strange & self._strange:
            link = self._links.of(one.broker_id)
            if link:
                link.doubt()
        self._strange = strange

    # -- one session ---------------------------------------------------------------------------------------------

    def lost(self, link: Link, intent: Intent) -> bool:
        """Of what was just claimed: the database lost an earlier claim of it, or its end. It is in hand already, or
        was, and is not sent again. A row that was put back has more attempts than the work that had it."""
        work, ending = self._at_work(intent.id), self._ends.remembered.find(intent.id)
        if work and work.link is link:
            return intent.attempts <= work.attempt
        return ending is not None and ending.end.session == link.session and intent.attempts <= ending.end.attempt

    async def agree(self, link: Link) -> None:
        """Make the rows of its session agree. Whoever claims for a link calls this, and claims nothing meanwhile.

        Raises: StorageUnavailable; the link is doubted then as before.
        """
        link.doubted = False
        try:
            await self._agree(link)
        except StorageUnavailable:
            link.doubted = True
            raise

    async def _agree(self, link: Link) -> None:
        works = {work.intent.id: work for work in self._lanes.works() if work.link is link}
        rows = {intent_id for intent_id, work in works.items() if work.recorded and not work.settled.is_set()}
        endings = {ending.end.intent_id: ending for ending in self._ends.remembered.of(link.session)}
        found = await self._storage.recover(
            Known(
                session=link.session,
                in_hand=tuple(_of_work(work) for work in works.values()),
                ended=tuple(_of_ending(ending) for ending in endings.values() if ending.end.intent_id not in works),
            )
        )
        self._observer.tell(found.transitions)
        for intent_id in rows.intersection(found.gone):
            self._ends.lose_row(works[intent_id])
        for intent in found.taken:
            if intent.id in works:
                works[intent.id].noted = (False, False)
        await self._end_again(endings, found)
        if found.stale:
            link.hang_up(wire.Close.REPLACED, "replaced")
        else:
            await self._give_back(link, [one for one in found.strangers if not self._knows(one)])
        _say(link, found)

    async def _end_again(self, endings: dict[IntentId, Ending], found: Recovered) -> None:
        """In the order in which they were written."""
        undone = {*found.unended, *found.gone}
        for intent_id, ending in endings.items():
            if intent_id in undone:
                await self._ends.again(ending, gone=intent_id in found.gone)

    async def _give_back(self, link: Link, strangers: Iterable[Held]) -> None:
        """Of these claims nobody heard."""
        for one in strangers:
            settled = await self._storage.put_back(
                PutBack(intent_id=one.intent_id, op=one.op, session=link.session, attempt=one.attempt, reason="unheard")
            )
            self._observer.tell(settled.transitions)

    def _knows(self, held: Held) -> bool:
        work, ending = self._at_work(held.intent_id), self._ends.remembered.find(held.intent_id)
        if work and work.attempt == held.attempt:
            return True
        return ending is not None and ending.end.attempt == held.attempt

    def _at_work(self, intent_id: IntentId) -> Work | None:
        work = self._lanes.find(intent_id)
        return work if work and not work.settled.is_set() else None


def _of_work(work: Work) -> Held:
    broker_id = BrokerId(work.intent.broker_id)
    return Held(intent_id=work.intent.id, op=work.intent.op, broker_id=broker_id, attempt=work.attempt)


def _of_ending(ending: Ending) -> Held:
    end = ending.end
    return Held(intent_id=end.intent_id, op=end.op, broker_id=end.session.broker_id, attempt=end.attempt)


def _say(link: Link, found: Recovered) -> None:
    told = {
        "claims taken again": len(found.taken),
        "ends written again": len(found.unended),
        "rows gone": len(found.gone),
        "claims given back": len(found.strangers),
    }
    if any(told.values()):
        said = ", ".join(f"{count} {what}" for what, count in told.items() if count)
        log.warning("broker %s: %s", link.session.broker_id, said)
