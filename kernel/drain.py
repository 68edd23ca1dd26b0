"""Takes what is pending for a broker into its lanes, for as long as this node holds its link."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import anyio
import anyio.abc

from kernel import wire
from kernel.clock import Clock
from kernel.errors import StorageUnavailable
from kernel.intent import IntentId, Op
from kernel.lanes import Lanes, Work
from kernel.link import Link
from kernel.links import Links
from kernel.observe import Observer
from kernel.recovery import Recovery
from kernel.storage import ClaimRequest, Claims, Intents, Progress

log = logging.getLogger(__name__)

OPS = frozenset(Op)
"""The operations that this node knows; a claim names them (design/dispatch.md, mixed versions)."""
UNFORESEEN = 5.0
"""Seconds until a claim is tried again that met a fault of ours."""
NOTE_EVERY = 1.0
"""Seconds after which the row of something slow tells that it was sent or accepted."""


class Drain:
    """One task a link claims, while it may find something; a claim is the only way in which recorded work comes into
    this node's hands."""

    def __init__(
        self,
        *,
        storage: Intents,
        links: Links,
        lanes: Lanes,
        recovery: Recovery,
        observer: Observer,
        clock: Clock,
        tasks: anyio.abc.TaskGroup,
        lazy: Callable[[Link], bool],
    ) -> None:
        """`lazy`: whether what a link claims may be undone by a crash of the database (see `ClaimRequest.lazily`)."""
        self._storage = storage
        self._links = links
        self._lanes = lanes
        self._recovery = recovery
        self._observer = observer
        self._clock = clock
        self._tasks = tasks
        self._lazy = lazy
        self._woken: dict[Link, float | None] = {}
        """The links for which a task claims, and when they were woken first since it last began to."""
        self._failing: set[Link] = set()
        """The links of which it was said that nothing can be claimed."""
        self._hints: dict[Link, set[IntentId] | None] = {}
        """What they were woken for; None: for anything of their broker's."""

    def start(self, link: Link) -> None:
        link.on_work = self._claim_soon
        link.wake()

    def wake(self, broker_id: str, ids: Sequence[str] = ()) -> None:
        """`ids`: what a signal told of; without, everything is looked at."""
        link = self._links.of(broker_id)
        if link and ids:
            hints = self._hints.setdefault(link, set())
            if hints is not None:
                hints.update(map(IntentId, ids))
            self._run_soon(link)
        elif link:
            link.wake()

    def _claim_soon(self, link: Link) -> None:
        self._hints[link] = None
        self._run_soon(link)

    def _run_soon(self, link: Link) -> None:
        if link not in self._woken:
            self._tasks.start_soon(self._run, link)
        if self._woken.get(link) is None:
            self._woken[link] = self._clock.monotonic()

    async def _run(self, link: Link) -> None:
        try:
            while link.open and (woken := self._woken[link]) is not None:
                self._woken[link] = None
                started = self._clock.monotonic()
                self._observer.stage("wake", started - woken)
                await self._try_claim(link, self._hints.pop(link, None))
                self._observer.stage("drain", self._clock.monotonic() - started)
        finally:
            del self._woken[link]
            self._hints.pop(link, None)
            if not link.open:
                self._failing.discard(link)

    async def _try_claim(self, link: Link, hints: set[IntentId] | None) -> None:
        try:
            if link.doubted:
                await self._recovery.agree(link)
            await self._claim_all(link, hints)
        except Exception as fault:  # noqa: BLE001 - a row that cannot be read ends no hub: it would end the next one too
            self._say_failed(link, fault)
            link.doubted = True  # what it was asked for it may have done
            await anyio.sleep(self._clock.jitter(0.5 if isinstance(fault, StorageUnavailable) else UNFORESEEN))
            link.wake()
        else:
            self._failing.discard(link)

    def _say_failed(self, link: Link, fault: Exception) -> None:
        """Once, until it goes well again."""
        if link in self._failing:
            return
        self._failing.add(link)
        if isinstance(fault, StorageUnavailable):
            log.warning("nothing claimed for broker %s: the database does not answer", link.session.broker_id)
        else:
            log.error("nothing claimed for broker %s", link.session.broker_id, exc_info=fault)

    async def _claim_all(self, link: Link, hints: set[IntentId] | None) -> None:
        """Claim until nothing is left or the window is full; a work that ends wakes the link again."""
        ids = None if hints is None else tuple(hints)
        while link.open:
            limit = link.window.size - link.in_hand
            if limit <= 0:
                return
            started = self._clock.monotonic()
            paused = link.paused
            asked = ClaimRequest(session=link.session, limit=limit, ops=OPS, ids=ids, lazily=self._lazy(link))
            claims = await self._storage.claim(asked)
            self._observer.stage("claim", self._clock.monotonic() - started)
            self._observer.tell(claims.transitions)
            if claims.stale:
                link.hang_up(wire.Close.REPLACED, "replaced")
                return
            if paused and claims.intents:  # nothing of a paused broker is claimed: it was resumed on another node
                link.paused = False
            self._take(link, claims, started)
            if len(claims.intents) < limit:
                return
            ids = None

    def _take(self, link: Link, claims: Claims, asked: float) -> None:
        """What is left until a deadline counts from when the claim was asked for: its answer may have lain here while
        this process stood still, and past its deadline nothing is sent."""
        for intent in claims.intents:
            if self._recovery.lost(link, intent):
                link.doubt()
                continue
            until = asked + intent.remaining(claims.now)
            self._lanes.enter(Work(intent=intent, link=link, until=until, unsure=self._recovery.unsure(intent)))

    # -- what the rows of slow work tell -----------------------------------------------------------------------------

    async def note(self) -> None:
        """Once a second, in one transaction, tell the rows of what is under way that it was sent or accepted, so that
        `explain` knows on every node. What ends sooner says so with its end."""
        while True:
            await anyio.sleep(NOTE_EVERY)
            steps = [step for work in self._lanes.works() if (step := _news(work))]
            if steps:
                try:
                    await self._storage.progress(steps)
                except StorageUnavailable:
                    log.warning("progress not stored: the database does not answer")


def _news(work: Work) -> Progress | None:
    known = (work.sent, work.accepted)
    if not work.recorded or (known == work.noted and not work.progress):
        return None
    work.noted = known
    work.progress = False
    return Progress(
        intent_id=work.intent.id,
        op=work.intent.op,
        epoch=work.link.session.epoch,
        attempt=work.attempt,
        sent=work.sent,
        accepted=work.accepted,
    )
