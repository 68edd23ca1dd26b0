"""Lets a caller wait for an intent's end, whichever node writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum, auto

import anyio

from kernel.agent import Agent
from kernel.clock import Clock
from kernel.errors import PointsmanError, StorageUnavailable
from kernel.intent import Intent, IntentId, State
from kernel.latch import Latch
from kernel.storage import Intents

LOOK = 0.05
"""Seconds between two looks at whether anybody still waits, at a stop."""


class Unended(Enum):
    """Why a wait came back without an end."""

    WAIT_OVER = auto()
    """The caller's time is over; the intent goes on."""
    SILENT = auto()
    """Nothing was heard of the intent for a whole rolling window."""


class Seen:
    """An end: the intent, and its agent as stored in the same commit where that is at hand."""

    __slots__ = ("agent", "intent")

    def __init__(self, intent: Intent, agent: Agent | None = None) -> None:
        self.intent = intent
        self.agent = agent


class Waiter:
    """One caller's wait for one intent. Registered before the intent is written, so that no end is missed."""

    def __init__(self, intent_id: IntentId, clock: Clock) -> None:
        self.intent_id = intent_id
        self.recorded = False
        """Whether there is a row to read. False for LOCAL work that pays no write."""
        self.sent_away = False
        """This hub stops: the wait is over although time is left."""
        self.taken = False
        """Its row, when it was last read, was in somebody's hands, or had ended."""
        self._clock = clock
        self._end: Seen | Unended | PointsmanError | None = None
        self._ended = Latch()
        self.heard_at = clock.monotonic()
        """When anything was heard of it."""
        self._moved_at = 0

    def end(self, end: Seen | Unended | PointsmanError) -> None:
        """The first one counts."""
        if self._end is None:
            self._end = end
            self._ended.set()

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self._end is not None

    def progress(self) -> None:
        self.heard_at = self._clock.monotonic()

    def moved(self, at: int) -> None:
        """The row moved at this instant, by the database's clock."""
        if at > self._moved_at:
            self._moved_at = at
            self.progress()

    async def outcome(self, wait: float, window: float) -> Seen | Unended | PointsmanError:
        """Wait for the end, at most `wait` seconds, and no longer than `window` without progress. An error is the
        one by which this node could not learn or store the end."""
        until = self._clock.monotonic() + wait
        while self._end is None:
            now = self._clock.monotonic()
            if now >= until:
                return Unended.WAIT_OVER
            if now >= self.heard_at + window:
                return Unended.SILENT
            with anyio.move_on_after(min(until, self.heard_at + window) - now):
                await self._ended.wait()
        return self._end


class Waiters:
    """Everybody on this node who waits for an end."""

    def __init__(self, storage: Intents, clock: Clock, rekick: tuple[float, ...]) -> None:
        self._storage = storage
        self._clock = clock
        self._rekick = rekick
        self._waiting: dict[IntentId, set[Waiter]] = {}
        self._unread: set[IntentId] = set()
        self._reading = anyio.Lock(fast_acquire=True)

    @contextmanager
    def register(self, intent_id: IntentId) -> Iterator[Waiter]:
        waiter = Waiter(intent_id, self._clock)
        self._waiting.setdefault(intent_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            others = self._waiting[intent_id]
            others.discard(waiter)
            if not others:
                del self._waiting[intent_id]

    async def outcome(self, waiter: Waiter, wait: float, window: float, kick: Callable[[], None]) -> Seen | Unended:
        """Wait for `waiter`'s end; while its row says that nobody took it, `kick` again after 50, 200, 800 ms.

        Raises: the error by which this node could not learn or store the end.
        """
        until = self._clock.monotonic() + wait
        for delay in map(self._clock.jitter, self._rekick):
            left = until - self._clock.monotonic()
            seen = await waiter.outcome(min(delay, left), window)
            if waiter.over or seen is Unended.SILENT or delay >= left:
                break
            if waiter.recorded:
                with anyio.move_on_after(until - self._clock.monotonic()):
                    await self._look_again(waiter, kick)
        else:
            seen = await waiter.outcome(until - self._clock.monotonic(), window)
        if isinstance(seen, PointsmanError):
            raise seen
        return seen

    async def _look_again(self, waiter: Waiter, kick: Callable[[], None]) -> None:
        try:
            await self._read_along(waiter.intent_id)
        except StorageUnavailable:
            return
        if not waiter.taken:
            kick()

    async def _read_along(self, intent_id: IntentId) -> None:
        """Read its row; what is asked for while a query is under way goes together into the next one."""
        self._unread.add(intent_id)
        async with self._reading:
            if intent_id not in self._unread:
                return  # somebody read it along
            asked = list(self._unread)
            try:
                self._told(await self._storage.follow(asked))
                self._unread.difference_update(asked)
            finally:
                self._unread.discard(intent_id)

    # -- what is told to those who wait ------------------------------------------------------------------------------

    def ended(self, intent: Intent, agent: Agent | None = None) -> None:
        for waiter in self._waiting.get(intent.id, ()):
            waiter.end(Seen(intent, agent))

    def failed(self, intent_id: IntentId, error: PointsmanError) -> None:
        """This node cannot say how it ended: tell those who wait here."""
        for waiter in self._waiting.get(intent_id, ()):
            waiter.end(error)

    def send_away(self) -> None:
        """This hub stops: whoever waits here is told to follow the dispatch on another."""
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.sent_away = True
                waiter.end(Unended.WAIT_OVER)

    async def nobody(self) -> None:
        """Until nobody waits here any more."""
        while self._waiting:
            await anyio.sleep(LOOK)

    def progress(self, intent_id: str) -> None:
        for waiter in self._waiting.get(IntentId(intent_id), ()):
            waiter.progress()

    def recorded(self, intent_id: IntentId) -> None:
        """LOCAL work has a row from now on: those who wait for it may read it."""
        for waiter in self._waiting.get(intent_id, ()):
            waiter.recorded = True

    async def read(self, ids: Iterable[str] | None = None) -> None:
        """Read the rows of those ids that somebody waits for, or of all of them (the poll), in one query."""
        asked = self._waiting if ids is None else (IntentId(one) for one in ids)
        rows = [one for one in asked if any(waiter.recorded for waiter in self._waiting.get(one, ()))]
        if rows:
            self._told(await self._storage.follow(rows))

    def _told(self, found: list[tuple[Intent, Agent | None]]) -> None:
        for intent, agent in found:
            for waiter in self._waiting.get(intent.id, ()):
                waiter.taken = intent.state is not State.PENDING
            if intent.state.ended:
                self.ended(intent, agent)
                continue
            for waiter in self._waiting.get(intent.id, ()):
                waiter.moved(max(intent.progress_at or 0, intent.claimed_at or 0))
