"""Tells a caller what became of its call: the end, or that it goes on, or that nobody can know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import anyio
import msgspec

from kernel.agent import Agent
from kernel.call import Answer
from kernel.clock import Clock
from kernel.ends import PATIENCE, Ends, unrecorded
from kernel.errors import (
    BrokerTimeout,
    Ended,
    Failure,
    NotFound,
    OutcomeUnknown,
    OutcomeUnrecorded,
    PointsmanError,
    StorageUnavailable,
)
from kernel.intent import Intent, IntentId, State
from kernel.lanes import Lanes
from kernel.node import NodeId
from kernel.observe import Observer
from kernel.storage import IdempotencyKey, Storage
from kernel.waiters import Seen, Unended, Waiter, Waiters

UNREAD = (
    "the call was taken, but the database does not answer and its outcome cannot be read: ask for the dispatch again"
)


class WaitSettings(Protocol):
    """Seconds."""

    @property
    def http_wait(self) -> float: ...
    @property
    def rolling_window(self) -> float: ...


class Answers:
    """Waits for an intent's row to end (design/dispatch.md section 8), never for an agent's phase."""

    def __init__(
        self,
        *,
        storage: Storage,
        waiters: Waiters,
        lanes: Lanes,
        ends: Ends,
        observer: Observer,
        clock: Clock,
        node_id: NodeId,
        settings: WaitSettings,
        kick: Callable[[Intent], None],
        stop: Callable[[Intent], None],
        is_calm: Callable[[], bool],
    ) -> None:
        self._storage = storage
        self._waiters = waiters
        self._lanes = lanes
        self._ends = ends
        self._observer = observer
        self._clock = clock
        self._node_id = node_id
        self._settings = settings
        self._kick = kick
        self._stop = stop
        self._is_calm = is_calm

    async def of(self, intent: Intent, waiter: Waiter, wait: float | None) -> Answer:
        """Wait at most `wait` seconds (None: `dispatch.http_wait`).

        Raises: Ended unless it is done; OutcomeUnknown; OutcomeUnrecorded; each with the dispatch's id.
        """
        try:
            return await self._of(intent, waiter, wait)
        except StorageUnavailable as fault:
            raise _unread(intent) from fault
        except PointsmanError as error:
            error.dispatch_id = intent.id
            raise

    async def _of(self, intent: Intent, waiter: Waiter, wait: float | None) -> Answer:
        if wait == 0:  # so that a repeat is answered as its first was, which could not know how it ends
            return Answer(intent=intent, agent=None, ended=False)
        if intent.state.ended:
            return await self._told(intent, None)
        budget = self._settings.http_wait if wait is None else wait
        remaining = intent.remaining(self._clock.now())
        seen = await self._seen(intent, waiter, min(budget, remaining))
        if isinstance(seen, Seen):
            started = self._clock.monotonic()
            answer = await self._told(seen.intent, seen.agent)
            self._observer.stage("reply", self._clock.monotonic() - started)
            return answer
        if seen is Unended.WAIT_OVER and (budget <= remaining or waiter.sent_away):
            return await self._not_yet(intent)
        return await self._give_up(intent)

    async def _seen(self, intent: Intent, waiter: Waiter, seconds: float) -> Seen | Unended:
        """Silence counts from the claim on for what may wait for its broker or its agent: nobody was to speak yet."""
        until = self._clock.monotonic() + seconds
        while True:
            left = until - self._clock.monotonic()
            seen = await self._waiters.outcome(waiter, left, self._settings.rolling_window, lambda: self._kick(intent))
            if seen is not Unended.SILENT:
                return seen
            if await self._moves_on(waiter):
                continue
            if not intent.hold or await self._was_taken(intent):
                return seen
            waiter.progress()

    async def _moves_on(self, waiter: Waiter) -> bool:
        """Whether its row tells of a progress, or of the end, that no signal told. A database that is away tells
        nothing: what is given up for that is stopped all the same."""
        heard_at = waiter.heard_at
        with suppress(StorageUnavailable):
            await self._waiters.read([waiter.intent_id])
        return waiter.over or waiter.heard_at > heard_at

    async def _was_taken(self, intent: Intent) -> bool:
        """Whether anybody ever had it in hand. LOCAL work is in hand from the beginning, and may have no row."""
        return intent.attempts > 0 or (await self._row(intent)).attempts > 0

    async def of_key(self, key: IdempotencyKey, wait: float | None) -> Answer | None:
        """What an earlier request with this key got, waiting for it as that one did; None when there was none.

        Raises: IdempotencyConflict; and whatever the earlier one ended with.
        """
        found = await self._storage.find_key(key)
        if found is None or found.intent_id is None:
            return None
        return await self.again(found.intent_id, wait)

    async def again(self, intent_id: IntentId, wait: float | None) -> Answer:
        with self._waiters.register(intent_id) as waiter:
            waiter.recorded = True
            answer = await self.of(await self.found(intent_id), waiter, wait)
            return msgspec.structs.replace(answer, repeated=True)

    async def found(self, intent_id: IntentId) -> Intent:
        """Raises: NotFound."""
        found = await self._storage.find_intents([intent_id])
        if not found:
            raise NotFound(f"there is no dispatch {intent_id}, or it is past its retention")
        return found[0]

    async def _told(self, intent: Intent, agent: Agent | None) -> Answer:
        if intent.state is not State.DONE:
            raise Ended(intent.error or _unexplained(intent))
        if agent is None:
            view = await self._storage.find_agent(intent.agent_id)
            agent = view.agent if view else None
        return Answer(intent=intent, agent=agent, ended=True)

    async def _not_yet(self, intent: Intent) -> Answer:
        """The wait is over: 202, once it is durable."""
        await self._write_down(intent)
        found = await self._row(intent)
        if found.state.ended:
            return await self._told(found, None)
        return Answer(intent=found, agent=None, ended=False)

    async def _give_up(self, intent: Intent) -> Answer:
        """Silence for a whole window, or the deadline: end it if nobody took it, else ask its owner to stop it."""
        await self._end_unsent(intent)
        await self._write_down(intent)
        found = await self._expired(intent)
        if found.state.ended:
            self._waiters.ended(found)
            return await self._told(found, None)
        self._stop(found)
        raise OutcomeUnknown()

    async def may_end(self, intent: Intent) -> bool:
        """Whether what looks untaken may be ended. After a gap of this node's own it may be in the hands of its
        broker's owner, whose claim the database lost (design/dispatch.md section 4)."""
        if self._is_calm():
            return True
        broker = await self._storage.find_broker(intent.broker_id)
        return broker is None or broker.connected_hub_id is None

    async def _expired(self, intent: Intent) -> Intent:
        """Its row, ended if nobody took it; what may not be ended now a sweep ends later."""
        if await self.may_end(intent):
            changed = await self._storage.expire([intent.id], BrokerTimeout().as_failure(), self._node_id)
            self._observer.tell(changed.transitions)
            if changed.intents:
                return changed.intents[0]
        return await self._row(intent)

    async def _row(self, intent: Intent) -> Intent:
        """Raises: OutcomeUnknown: it was there, and the database lost it in a failover."""
        found = await self._storage.find_intents([intent.id])
        if not found:
            raise OutcomeUnknown("the database lost it with its last commits: look at the agent before repeating it")
        return found[0]

    async def _end_unsent(self, intent: Intent) -> None:
        """What still waits in this node's lanes ends at once, and its end tells that it was not sent."""
        work = self._lanes.find(intent.id)
        if work and not work.out:
            work.end_wait()
            with anyio.move_on_after(PATIENCE):
                await work.settled.wait()

    async def _write_down(self, intent: Intent) -> None:
        """Raises: OutcomeUnrecorded when what is in hand here cannot get its row: it goes on all the same."""
        work = self._lanes.find(intent.id)
        if work is None:
            return
        try:
            await self._ends.write_down(work)
        except StorageUnavailable as fault:
            raise unrecorded(work) from fault


def _unread(intent: Intent) -> OutcomeUnrecorded:
    """What the storage says of a question, that nothing was done, would be no truth about the call."""
    error = OutcomeUnrecorded(UNREAD)
    error.dispatch_id = intent.id
    return error


def _unexplained(intent: Intent) -> Failure:
    return Failure(code=str(intent.state), message=f"the operation ended {intent.state}", status=409)
