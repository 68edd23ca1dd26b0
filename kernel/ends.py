"""Writes what became of work in hand: the one last step of the fast and of the slow path."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import anyio
import anyio.abc
import msgspec

from kernel.agent import AgentChange, Phase
from kernel.clock import Clock
from kernel.errors import OutcomeUnknown, OutcomeUnrecorded, PointsmanError, RuntimeFailed, StorageUnavailable
from kernel.intent import Intent, Op, State
from kernel.lanes import Work
from kernel.link import Link
from kernel.node import NodeId
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.remembered import Ending, Remembered, as_recorded
from kernel.signals import Signal, SignalKind, Signals
from kernel.storage import End, PutBack, Recording, Settled, Storage
from kernel.tunnel import Outcome
from kernel.waiters import Waiters

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds after which a caller is told that the answer could not be stored yet."""
RETRIES = 300.0
"""Seconds for which the node goes on trying to store it."""
UNSTORABLE = "unstorable"
"""Why an end is not the one that the broker gave."""
UNWRITTEN = "it goes on, but the database does not answer and nothing is written of it yet: ask for the dispatch again"


class Ends:
    """Every write that says how an attempt ended goes through here, fenced by epoch and attempt in the storage."""

    def __init__(
        self,
        *,
        storage: Storage,
        signals: Signals,
        notices: Notices,
        waiters: Waiters,
        observer: Observer,
        clock: Clock,
        node_id: NodeId,
        tasks: anyio.abc.TaskGroup,
        lazy: Callable[[Link], bool],
    ) -> None:
        """`lazy`: whether an end over this link may be undone by a crash of the database (see `End.lazily`)."""
        self._storage = storage
        self._signals = signals
        self._notices = notices
        self._waiters = waiters
        self._observer = observer
        self._clock = clock
        self._node_id = node_id
        self._tasks = tasks
        self._lazy = lazy
        self.remembered = Remembered(clock)
        self.late = 0
        """Results that were dropped because somebody else owned the intent by then."""

    async def settle(self, work: Work, outcome: Outcome) -> None:
        """Write it, however long the database is away, and tell those who wait."""
        outcome = _about_agent(work.intent, outcome)
        started = self._clock.monotonic()
        pause, waited, told = 0.05, 0.0, False
        while True:
            with anyio.move_on_after(math.inf if told else PATIENCE - waited) as patience:
                try:
                    settled = await self._write(work, outcome)
                    if settled is None or not self._undone(work, settled):
                        break
                except StorageUnavailable:
                    pass
                except Exception as fault:  # noqa: BLE001 - a hub that ended of it would hand it on to the next
                    outcome = self._unstorable(work, outcome, fault)
                await anyio.sleep(self._clock.jitter(pause))
                pause = min(2.0, pause * 2)
            waited = self._clock.monotonic() - started
            if patience.cancelled_caught:
                told = True
                self._waiters.failed(work.intent.id, unrecorded(work))
            if waited >= RETRIES and not (work.recorded and work.link.open):
                then = "it will be driven again" if work.recorded else "it has no row, and only its broker knows of it"
                log.error("the end of dispatch %s was never stored: %s", work.intent.id, then)
                return
        self._observer.stage("end", self._clock.monotonic() - started)
        if settled:
            if settled.accepted and outcome.kind == "end":
                self._remember(work, outcome)
            self._tell(work, outcome, settled)

    # -- when the database loses commits ----------------------------------------------------------------------------

    def _undone(self, work: Work, settled: Settled) -> bool:
        """The claim was undone: it is made good where claims are made, and then this is written again."""
        row = settled.intent
        if settled.accepted or not work.link.open:
            return False
        if row is None:
            return self.lose_row(work)
        mine = row.claimed_session == work.link.session.session_id  # claimed again, between two looks at the row
        if row.state.ended or row.attempts > work.attempt or (row.attempts == work.attempt and not mine):
            return False
        work.link.doubt()
        return True

    def lose_row(self, work: Work) -> bool:
        """Its row is gone: from now on it is like LOCAL work, whose end brings its row along. False of a message,
        which nothing brings back."""
        work.plan = work.plan or as_recorded(work.intent)
        work.recorded = work.plan is None
        return not work.recorded

    def _remember(self, work: Work, outcome: Outcome) -> None:
        response = work.exchange.response if work.exchange else None
        size = len(response.body) if response else 0
        self.remembered.keep(_end(work, outcome, lazily=False), work.intent, work.plan, size)

    async def again(self, ending: Ending, *, gone: bool) -> None:
        """Write an end that was undone once more, with its row if that is gone. Raises: StorageUnavailable."""
        plan = ending.recording()
        try:
            if not gone:
                settled = await self._storage.end(ending.end)
            elif plan:
                settled = await self._storage.insert_ended(plan, ending.end)
            else:
                return
        except StorageUnavailable:
            raise
        except PointsmanError as fault:
            log.error("the end of dispatch %s cannot be stored again: %s", ending.end.intent_id, fault.message)
            return
        self._observer.tell(settled.transitions)
        if settled.accepted and settled.intent:
            self._waiters.ended(settled.intent, settled.agent)
            self._notices.ended(settled.intent)

    def _unstorable(self, work: Work, outcome: Outcome, fault: Exception) -> Outcome:
        """The database refuses this very end: what is stored instead holds nothing that the broker said. What it did
        is not undone by that, so nobody is told that it failed."""
        if outcome.reason == UNSTORABLE:
            return outcome
        foreseen = isinstance(fault, PointsmanError)
        log.error("the end of dispatch %s cannot be stored as it is: %s", work.intent.id, fault, exc_info=not foreseen)
        told = "the broker's answer cannot be stored" + (f": {fault}" if foreseen else "")
        done = outcome.kind == "end" and outcome.state is State.DONE
        error = OutcomeUnknown(f"{told}; it did it: look at the agent") if done else RuntimeFailed(told)
        return Outcome(kind="end", reason=UNSTORABLE, state=State.FAILED, error=error.as_failure())

    async def _write(self, work: Work, outcome: Outcome) -> Settled | None:
        """None: nothing was to be written here, since whoever took the session away puts the row back."""
        if outcome.kind == "lost":
            await self.write_down(work)
            self._wake(work.intent.broker_id)
            return None
        if outcome.kind in ("later", "dropped"):
            await self.write_down(work)
            return await self._storage.put_back(_put_back(work, outcome, self._clock))
        async with work.recording:
            end = _end(work, outcome, lazily=self._lazy(work.link))
            if work.recorded or work.plan is None:
                return await self._storage.end(end)
            return await self._storage.insert_ended(work.plan, end)

    async def write_down(self, work: Work) -> None:
        """Give LOCAL work its row, in this node's hands or, if its session is gone, pending; once."""
        async with work.recording:
            if work.recorded or work.plan is None or work.settled.is_set():
                return
            sent_at = work.exchange.sent_at if work.exchange else None
            plan = msgspec.structs.replace(
                work.plan,
                attempts=work.attempt,
                claim=work.link.session,
                sent_at=sent_at,
                deadline_at=work.intent.deadline_at,  # the plan's span begins anew when it is recorded
            )
            recorded = await self._storage.record(Recording(intents=(plan,)))
            work.recorded = True
        self._observer.tell(recorded.transitions)
        self._waiters.recorded(work.intent.id)
        if any(intent.state is State.PENDING for intent in recorded.intents):  # the session moved: whose is it now?
            self._notices.wake(work.intent.broker_id)

    def _tell(self, work: Work, outcome: Outcome, settled: Settled) -> None:
        self._observer.tell(settled.transitions)
        intent, work.agent = settled.intent, settled.agent
        if not settled.accepted:
            self.late += 1
            self._signals.signal(self._node_id, Signal(kind=SignalKind.ENDED, ids=(work.intent.id,)))
        elif intent and intent.state.ended:
            self._waiters.ended(intent, settled.agent)
            self._notices.ended(intent)
        elif outcome.retry_in:
            self._tasks.start_soon(self._wake_in, outcome.retry_in * 1.25, work.intent.broker_id)
        for dropped in settled.dropped:
            self._waiters.ended(dropped)
            self._notices.ended(dropped)
        if settled.waiting:
            work.link.wake()

    async def _wake_in(self, seconds: float, broker_id: str) -> None:
        await anyio.sleep(seconds)
        self._wake(broker_id)

    def _wake(self, broker_id: str) -> None:
        self._signals.signal(self._node_id, Signal(kind=SignalKind.WORK, broker_id=broker_id))


def _end(work: Work, outcome: Outcome, *, lazily: bool) -> End:
    exchange = work.exchange
    return End(
        intent_id=work.intent.id,
        op=work.intent.op,
        state=outcome.state,
        session=work.link.session,
        attempt=work.attempt,
        reason=outcome.reason,
        result=outcome.result,
        error=outcome.error,
        agent_id=work.intent.agent_id,
        change=outcome.change,
        sent_at=exchange.sent_at if exchange else None,
        accepted_at=exchange.accepted_at if exchange else None,
        failures=outcome.failures,
        lazily=lazily,
    )


def _put_back(work: Work, outcome: Outcome, clock: Clock) -> PutBack:
    """Never sooner than the broker asked; a little later by chance, so that what failed together does not come back
    together."""
    return PutBack(
        intent_id=work.intent.id,
        op=work.intent.op,
        session=work.link.session,
        attempt=work.attempt,
        reason=outcome.reason,
        retry_in=outcome.retry_in + clock.jitter(outcome.retry_in / 4),
        failures=outcome.failures,
        error=outcome.error,
    )


def _about_agent(intent: Intent, outcome: Outcome) -> Outcome:
    """A creation that did not happen takes its agent's row with it; one that may have leaves it in `error`."""
    if intent.op is not Op.CREATE or outcome.kind != "end" or outcome.state is State.DONE or outcome.change:
        return outcome
    error = outcome.error
    if error and error.code == "outcome_unknown":
        change = AgentChange(phase=Phase.ERROR, message=error.message)
    else:
        change = AgentChange(removal="row")
    return msgspec.structs.replace(outcome, change=change)


def unrecorded(work: Work) -> OutcomeUnrecorded:
    """What its callers are told of work that goes on, or ended, while the database is away."""
    error = OutcomeUnrecorded(None if work.answered else UNWRITTEN)
    error.dispatch_id = work.intent.id
    return error
