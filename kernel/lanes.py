"""One thing of an agent's lane after the other, many agents at once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.abc

from kernel.agent import Agent, Report
from kernel.clock import Clock
from kernel.intent import Intent, Lane
from kernel.latch import Latch
from kernel.link import Exchange, Link
from kernel.storage import AgentView, NewIntent

REMEMBERED = 5.0
"""Seconds for which it is remembered that something is not wanted: as long as the answer of a claim may take."""


class Work:
    """An intent in this node's hands: claimed from its row, or LOCAL and not written anywhere yet."""

    cancelled = False
    out = False
    """Its waits are over: it is on its way to the broker, or was there."""
    aside = False
    """It is ended where it waits, behind others of its lane."""
    accepted = False
    """The broker says that it took it."""
    progress = False
    """The broker told of progress since the row was last told."""
    told_at = -math.inf
    """When the node that accepted it was last told that it moves on."""
    noted = (False, False)
    """What of (sent, accepted) its row knows."""
    report: Report | None = None
    """What its agent reported of the run that it makes, before its end is stored."""
    exchange: Exchange | None = None
    """The request in flight, once there is one."""
    agent: Agent | None = None
    """Its agent as stored with its end."""
    _waiting: anyio.CancelScope | None = None

    def __init__(
        self,
        *,
        intent: Intent,
        link: Link,
        until: float,
        plan: NewIntent | None = None,
        view: AgentView | None = None,
        values: dict[str, str] | None = None,
        unsure: bool = False,
    ) -> None:
        """`unsure`: a crash of the database may have undone an earlier claim of it."""
        self.intent = intent
        self.link = link
        self.until = until
        """The deadline on the monotonic clock."""
        self.plan = plan
        """Of LOCAL work: what is recorded if it must be."""
        self.recorded = plan is None
        self.recording = anyio.Lock(fast_acquire=True)
        """Held while LOCAL work gets its row, so that its end finds it either there or not."""
        self.view = view
        self.values = values
        self._unsure = unsure
        self.turn = Latch()
        """It is the first of its lane."""
        self.settled = Latch()

    # -- what it waits for -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Its turn came: from now on it wants a place in the broker's window."""
        self.turn.set()
        self.link.in_hand += 1

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """It waits under this, for its turn or for a place: `seconds` until its deadline, less if it is given up."""
        with anyio.move_on_after(max(0.0, seconds)) as scope:
            self._waiting = scope
            if self.cancelled:
                scope.cancel()
            yield
        if self._waiting is scope:  # its next wait may have begun in another task
            self._waiting = None

    def set_out(self) -> bool:
        """It has its place: what happens now ends with the broker's answer. False when its wait was ended before."""
        assert self._waiting, "a work sets out from under its patience"
        if self._waiting.cancel_called:
            return False
        self._waiting.deadline = math.inf
        self._waiting = None
        self.out = True
        return True

    def end_wait(self) -> None:
        """Nobody wants it any more: unless it is out, it ends now, unsent."""
        if self._waiting:
            self._waiting.cancel()

    @contextmanager
    def without_place(self) -> Iterator[None]:
        """While it waits for something else than a place, it keeps none from others."""
        self._let_go()
        try:
            yield
        finally:
            self.link.in_hand += 1

    def finish(self) -> None:
        """Its end is decided: the next of the lane may go, and the window has a place more."""
        self.settled.set()
        self._let_go()

    def _let_go(self) -> None:
        """It wants no place any more: if that makes room, there may be something to claim."""
        full = self.link.in_hand >= self.link.window.size
        self.link.in_hand -= 1
        if full:
            self.link.wake()

    @property
    def attempt(self) -> int:
        return self.intent.attempts

    @property
    def retried(self) -> bool:
        """An earlier attempt may have been carried out."""
        return self.attempt > 1 or self._unsure

    @property
    def sent(self) -> bool:
        return self.exchange is not None and self.exchange.sent.is_set()

    @property
    def answered(self) -> bool:
        return self.exchange is not None and self.exchange.response is not None

    @property
    def alone(self) -> bool:
        """Two broker processes died with it in flight: it is sent alone (design/dispatch.md, poison)."""
        return self.intent.broker_crashes >= 2


class Lanes:
    """The lanes of every agent that this node has work for. A lane is a queue and, while it holds work, a task."""

    def __init__(
        self,
        tasks: anyio.abc.TaskGroup,
        clock: Clock,
        *,
        deliver: Callable[[Work], Awaitable[None]],
        put_aside: Callable[[Work], Awaitable[None]],
    ) -> None:
        self._tasks = tasks
        self._clock = clock
        self._deliver = deliver
        self._put_aside = put_aside
        self._queues: dict[tuple[str, Lane], deque[Work]] = {}
        self._by_id: dict[str, Work] = {}
        self._unwanted: dict[str, float] = {}
        """What was to be stopped and was not here, by when."""

    def enter(self, work: Work) -> None:
        """Take the last place in the agent's lane; the order of these calls is the order of delivery."""
        if self._unwanted and not work.retried:  # else only its broker knows what became of it
            work.cancelled = self._was_refused(work.intent.id)
        self._by_id[work.intent.id] = work
        key = (work.intent.agent_id, work.intent.lane)
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque([work])
            work.begin()
            self._tasks.start_soon(self._run, key)
        else:
            work.view = None  # it is old when the turn comes: it is read anew then
            queue.append(work)
            self._tasks.start_soon(self._stand, queue, work)

    async def _run(self, key: tuple[str, Lane]) -> None:
        queue = self._queues[key]
        try:
            while queue:
                work = queue[0]
                await (work.settled.wait() if work.aside else self._deliver(work))
                queue.popleft().finish()
                self._forget(work)
                if queue:
                    queue[0].begin()
        finally:
            del self._queues[key]

    async def _stand(self, queue: deque[Work], work: Work) -> None:
        """Behind others, wait for the turn; past its deadline, or when nobody wants it any more, it ends there, however
        long the others take (P1)."""
        if work.turn.is_set():  # it came before this task began: it waits under its delivery's patience already
            return
        with work.patience(work.until - self._clock.monotonic()):
            await work.turn.wait()
        if work.turn.is_set():
            return
        work.aside = True
        await self._put_aside(work)
        work.settled.set()
        if queue[0] is not work:
            queue.remove(work)
            self._forget(work)

    def _forget(self, work: Work) -> None:
        if self._by_id.get(work.intent.id) is work:
            del self._by_id[work.intent.id]

    def control_of(self, agent_id: str) -> Work | None:
        """The last of what is in hand in the agent's control lane: control goes before messages when both wait."""
        queue = self._queues.get((agent_id, Lane.CONTROL))
        return queue[-1] if queue else None

    def works(self) -> list[Work]:
        """Everything in hand, oldest first in each lane."""
        return [work for queue in self._queues.values() for work in queue]

    def find(self, intent_id: str) -> Work | None:
        return self._by_id.get(intent_id)

    def refuse(self, intent_id: str) -> None:
        """Whoever asks to stop it may be quicker than the answer of the claim that brings it here."""
        now = self._clock.monotonic()
        self._unwanted = {one: at for one, at in self._unwanted.items() if at >= now - REMEMBERED}
        self._unwanted[intent_id] = now

    def _was_refused(self, intent_id: str) -> bool:
        return self._unwanted.pop(intent_id, -math.inf) >= self._clock.monotonic() - REMEMBERED

    def of_agent(self, agent_id: str) -> list[Work]:
        return [work for lane in Lane for work in self._queues.get((agent_id, lane), ())]

    def unrecorded(self) -> list[Work]:
        return [work for work in self.works() if not work.recorded]
