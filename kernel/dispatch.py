"""THE STORY: a call is accepted, and what was accepted is delivered. Two lines that meet in a durable row."""

from __future__ import annotations

import json
import logging
from typing import Any, Protocol

import anyio
import anyio.abc
import msgspec

from kernel.agent import AgentChange, Phase
from kernel.attempt import Attempts
from kernel.broker import Broker, BrokerId
from kernel.call import Answer, Call
from kernel.clock import Clock
from kernel.errors import (
    BrokerOffline,
    BrokerPaused,
    BrokerTimeout,
    Draining,
    Ended,
    Failure,
    NotFound,
    OutcomeUnknown,
    OutcomeUnrecorded,
    PayloadTooLarge,
    PointsmanError,
    StorageUnavailable,
    Unprocessable,
)
from kernel.intent import ENDS_RUN, Intent, IntentId, Op, State, lane_of
from kernel.keyring import INTENT_VALUES, Keyring
from kernel.lanes import Lanes, Work
from kernel.link import Link
from kernel.links import Links
from kernel.node import NodeId
from kernel.observe import Observer
from kernel.pulse import Pulse
from kernel.route import Route, RouteAdvice, RouteRequest, agrees, standard
from kernel.signals import BusState, Kind, Signal, Signals
from kernel.storage import (
    Cancelled,
    End,
    IdempotencyKey,
    NewIntent,
    PutBack,
    Recorded,
    Recording,
    Settled,
    Storage,
)
from kernel.transition import ACCEPTED, REFUSED, Transition
from kernel.tunnel import RUNS, Outcome
from kernel.waiters import Seen, Unended, Waiter, Waiters

log = logging.getLogger(__name__)

END_PATIENCE = 5.0
"""Seconds after which a caller is told that the answer could not be stored yet."""
END_RETRIES = 300.0
"""Seconds for which the node goes on trying to store it."""


FRAME_ALLOWANCE = 1_500
"""Bytes of a request frame beside its body: ids, path, signature."""


class DispatchSettings(Protocol):
    """The part of the settings that the pipeline reads; seconds."""

    @property
    def http_wait(self) -> float: ...
    @property
    def rolling_window(self) -> float: ...
    @property
    def deadline(self) -> float: ...
    @property
    def message_ttl(self) -> float: ...
    @property
    def now_ttl(self) -> float: ...
    @property
    def reconnect_grace(self) -> float: ...


class RouteHook(Protocol):
    """The compiled `rank_route`."""

    def ask(self, *arguments: object, accept: Any = None) -> Any: ...


class Dispatcher:
    """Accepts calls and delivers work. Everything that it needs is handed in by the hub."""

    def __init__(
        self,
        *,
        storage: Storage,
        signals: Signals,
        links: Links,
        waiters: Waiters,
        attempts: Attempts,
        observer: Observer,
        pulse: Pulse,
        keyring: Keyring,
        clock: Clock,
        settings: DispatchSettings,
        rank_route: RouteHook,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._storage = storage
        self._signals = signals
        self._links = links
        self._waiters = waiters
        self._attempts = attempts
        self._observer = observer
        self._pulse = pulse
        self._keyring = keyring
        self._clock = clock
        self._settings = settings
        self._rank_route = rank_route
        self._tasks = tasks
        self.lanes = Lanes(tasks, self.deliver)
        self.late_ends = 0
        self.draining = False

    @property
    def node_id(self) -> NodeId:
        return self._pulse.node_id

    # -- the first line: accept ------------------------------------------------------------------------------------

    async def call(self, call: Call) -> Answer:
        """Accept a call and wait for its end as long as the caller asks.

        Raises: every error of design/api.md that an operation can end with; `dispatch_id` is set where a row exists.
        """
        if call.key:
            repeated = await self.repeated(call.key, call.wait)
            if repeated:
                return repeated
        intent_id = IntentId(self._clock.uuid7())
        with self._waiters.register(intent_id) as waiter:
            intent = await self.accept(call, intent_id, waiter)
            if intent.id != intent_id:
                return await self._again(intent.id, call.wait)
            return await self._outcome(intent, waiter, call.wait)

    async def accept(self, call: Call, intent_id: IntentId, waiter: Waiter) -> Intent:
        """Route it; then record and signal it, or put it straight into its lane (LOCAL, P7)."""
        if self.draining:
            raise Draining()
        request, advice = self._route(call)
        if advice.route is Route.REFUSE:
            raise self._refusal(call, intent_id, request, advice)
        plan = self._plan(call, intent_id, advice)
        self._check_size(call)
        link = self._links.of(plan.broker_id) if advice.route is Route.LOCAL else None
        if link and self._needs_no_row(call, link):
            return self._go(call, plan, link)
        recorded = await self._record(call, plan)
        if recorded.repeated and recorded.repeated.intent_id:
            return await self._found(recorded.repeated.intent_id)
        waiter.recorded = True
        self._signals.signal(self._owner(request), Signal(kind=Kind.WORK, broker_id=plan.broker_id, ids=(plan.id,)))
        return recorded.intents[0]

    def _check_size(self, call: Call) -> None:
        """What can never fit into a frame to this broker is told now, where the broker is known."""
        link = self._links.of(call.view.agent.runtime_broker_id or "")
        size = len(msgspec.json.encode(call.args)) * 4 // 3 + FRAME_ALLOWANCE
        if link and size > link.frame_limit:
            raise PayloadTooLarge(
                f"the request needs a frame of about {size} bytes; its broker takes {link.frame_limit}: send less"
            )

    def _route(self, call: Call) -> tuple[RouteRequest, RouteAdvice]:
        started = self._clock.monotonic()
        broker = call.view.broker
        if broker is None:
            raise Unprocessable("this agent has no broker: create it again, or give it one")
        request = self._snapshot(call, broker)
        advised = self._rank_route.ask(request, accept=lambda advice: agrees(advice, request))
        advice: RouteAdvice = advised.value if advised else standard(request)
        self._observer.stage("route", self._clock.monotonic() - started)
        return request, advice

    def _snapshot(self, call: Call, broker: Broker) -> RouteRequest:
        here = self._links.of(broker.id) is not None
        agent = call.view.agent
        missing = broker.missing_for
        return RouteRequest(
            op=call.op,
            agent_id=agent.id,
            agent_slug=agent.slug,
            project_id=agent.project_id,
            phase=agent.phase,
            labels=agent.labels,
            broker=broker,
            node_id=self.node_id,
            socket_here=here,
            held_elsewhere=not here and broker.online and broker.connected_hub_id != self.node_id,
            hold=call.hold,
            now=call.deliver == "now",
            between_sockets=missing is not None
            and missing < self._settings.reconnect_grace
            and not broker.left_orderly,
        )

    def _refusal(self, call: Call, intent_id: IntentId, request: RouteRequest, advice: RouteAdvice) -> PointsmanError:
        self._observer.tell([_refused(call, intent_id, self.node_id, advice.reason, self._clock)])
        details = {"brokerId": request.broker.id, "reason": advice.reason}
        if advice.reason == "paused":
            return BrokerPaused(details=details, retry_after=advice.retry_after)
        message = None
        if advice.reason != "nobody_home":
            message = f"the call was refused by a route strategy: {advice.reason}"
        return BrokerOffline(message, details=details, retry_after=advice.retry_after)

    def _plan(self, call: Call, intent_id: IntentId, advice: RouteAdvice) -> NewIntent:
        agent = call.view.agent
        values = json.dumps(call.values).encode() if call.values is not None else None
        return NewIntent(
            id=intent_id,
            op=call.op,
            lane=lane_of(call.op),
            broker_id=BrokerId(agent.runtime_broker_id or ""),
            agent_id=agent.id,
            agent_slug=agent.slug,
            project_id=agent.project_id,
            deadline_in=self._deadline(call),
            deadline_at=call.deadline_at,
            route=advice.route,
            principal=call.principal,
            request_id=call.request_id,
            node_id=self.node_id,
            traceparent=call.traceparent,
            run_id=self._clock.uuid7() if call.op in RUNS else agent.run_id,
            hold=call.hold,
            args=call.args,
            sealed=self._keyring.seal(INTENT_VALUES, values, intent_id) if values is not None else None,
            message=call.message and msgspec.structs.replace(call.message, id=intent_id),
            created_at=self._clock.now(),
        )

    def _deadline(self, call: Call) -> float:
        own = self._settings.message_ttl if call.op is Op.MESSAGE else self._settings.deadline
        if call.deliver == "now":
            own = min(own, self._settings.now_ttl)
        return own if call.deadline_in is None else min(own, call.deadline_in)

    def _needs_no_row(self, call: Call, link: Link) -> bool:
        """LOCAL without a write (design/dispatch.md section 6): nothing waits, no key, and this node is sure of
        itself. A message is always written first, and so is a creation, whose agent is written anyway."""
        return (
            call.op not in (Op.MESSAGE, Op.CREATE)
            and call.key is None
            and call.wait != 0
            and lane_of(call.op) not in call.view.waiting
            and self._links.trusted(link)
            and self._pulse.steady
            and self._signals.state() is not BusState.BLIND
        )

    def _go(self, call: Call, plan: NewIntent, link: Link) -> Intent:
        """Take the place in the agent's lane, in memory: no write before the frame."""
        until = self._until(plan)
        intent = in_hand(plan, link, deadline_in=until - self._clock.monotonic(), clock=self._clock)
        self.lanes.enter(Work(intent=intent, link=link, until=until, plan=plan, view=call.view, values=call.values))
        return intent

    def _until(self, plan: NewIntent) -> float:
        seconds = plan.deadline_in
        if plan.deadline_at is not None:
            seconds = min(seconds, (plan.deadline_at - self._clock.now()) / 1_000_000)
        return self._clock.monotonic() + max(0.0, seconds)

    async def _record(self, call: Call, plan: NewIntent) -> Recorded:
        started = self._clock.monotonic()
        recorded = await self._storage.record(
            Recording(
                intents=(plan,),
                key=call.key,
                agent=call.new_agent,
                provider=call.provider,
                supersedes_starts=call.op in ENDS_RUN,
            )
        )
        self._observer.stage("record", self._clock.monotonic() - started)
        self._observer.tell(recorded.transitions)
        for superseded in recorded.superseded:
            self._waiters.ended(superseded)
        return recorded

    def _owner(self, request: RouteRequest) -> NodeId | None:
        if request.socket_here or not request.held_elsewhere:
            return self.node_id
        return NodeId(request.broker.connected_hub_id or "")

    # -- waiting for the end ---------------------------------------------------------------------------------------

    async def repeated(self, key: IdempotencyKey, wait: float | None) -> Answer | None:
        """The answer of an earlier request with this key, or None when there was none.

        Raises: IdempotencyConflict; and whatever the earlier one ended with.
        """
        found = await self._storage.find_key(key)
        if found is None or found.intent_id is None:
            return None
        return await self._again(found.intent_id, wait)

    async def _again(self, intent_id: IntentId, wait: float | None) -> Answer:
        with self._waiters.register(intent_id) as waiter:
            waiter.recorded = True
            intent = await self._found(intent_id)
            answer = await self._outcome(intent, waiter, wait)
            return msgspec.structs.replace(answer, repeated=True)

    async def _found(self, intent_id: IntentId) -> Intent:
        found = await self._storage.find_intents([intent_id])
        if not found:
            raise NotFound(f"the dispatch {intent_id} is past its retention")
        return found[0]

    async def _outcome(self, intent: Intent, waiter: Waiter, wait: float | None) -> Answer:
        if intent.state.ended:
            return await self._told(intent, None)
        if wait == 0:
            return Answer(intent=intent, agent=None, ended=False)
        budget = self._settings.http_wait if wait is None else wait
        remaining = max(0.0, (intent.deadline_at - self._clock.now()) / 1_000_000)
        try:
            seen = await self._waiters.outcome(
                waiter, min(budget, remaining), self._settings.rolling_window, lambda: self._kick(intent)
            )
        except PointsmanError as error:
            error.dispatch_id = intent.id
            raise
        if isinstance(seen, Seen):
            return await self._told(seen.intent, seen.agent)
        if seen is Unended.WAIT_OVER and budget <= remaining:
            return await self._not_yet(intent)
        return await self._give_up(intent)

    def _kick(self, intent: Intent) -> None:
        """Nobody took it yet: signal again, to all, since its owner may have changed."""
        self._signals.signal(None, Signal(kind=Kind.WORK, broker_id=intent.broker_id, ids=(intent.id,)))

    async def _told(self, intent: Intent, agent: Any) -> Answer:
        """The end as the caller gets it.

        Raises: Ended, with the error that the intent keeps, unless it is done.
        """
        if intent.state is not State.DONE:
            error = Ended(intent.error or _unexplained(intent))
            error.dispatch_id = intent.id
            raise error
        if agent is None:
            view = await self._storage.find_agent(intent.agent_id)
            agent = view.agent if view else None
        return Answer(intent=intent, agent=agent, ended=True)

    async def _not_yet(self, intent: Intent) -> Answer:
        """The wait is over: 202, once it is durable."""
        work = self.lanes.find(intent.id)
        if work:
            await self.write_down(work)
        found = await self._found(intent.id)
        if found.state.ended:
            return await self._told(found, None)
        return Answer(intent=found, agent=None, ended=False)

    async def _give_up(self, intent: Intent) -> Answer:
        """Silence for a whole window, or the deadline: end it if nobody took it, else ask its owner to stop it."""
        work = self.lanes.find(intent.id)
        if work:
            await self.write_down(work)
        failure = BrokerTimeout().as_failure()
        changed = await self._storage.expire([intent.id], failure, self.node_id)
        self._observer.tell(changed.transitions)
        found = changed.intents[0] if changed.intents else await self._found(intent.id)
        if found.state.ended:
            self._waiters.ended(found)
            return await self._told(found, None)
        self._stop(found)
        unknown = OutcomeUnknown()
        unknown.dispatch_id = intent.id
        raise unknown

    # -- the second line: deliver ----------------------------------------------------------------------------------

    async def deliver(self, work: Work) -> None:
        """Execute what is claimed and write its end. Lanes alone call this, one work of a lane at a time."""
        async with work.link.window.place(work.intent.lane, alone=work.alone):
            outcome = await self._attempts.make(work)
        await self._settle(work, _about_agent(work.intent, outcome))

    async def _settle(self, work: Work, outcome: Outcome) -> None:
        """Write what became of it, however long the database is away; tell those who wait."""
        started = self._clock.monotonic()
        pause = 0.05
        told = False
        while True:
            try:
                settled = await self._write(work, outcome)
                break
            except StorageUnavailable:
                waited = self._clock.monotonic() - started
                if waited >= END_PATIENCE and not told:
                    told = True
                    self._waiters.failed(work.intent.id, _unrecorded(work.intent))
                if waited >= END_RETRIES:
                    log.error("the end of dispatch %s was never stored: it will be driven again", work.intent.id)
                    return
                await anyio.sleep(self._clock.jitter(pause))
                pause = min(2.0, pause * 2)
        self._observer.stage("end", self._clock.monotonic() - started)
        if settled:
            self._tell(work, outcome, settled)

    async def _write(self, work: Work, outcome: Outcome) -> Settled | None:
        """The one last step of both paths. None: nothing was to be written here."""
        if outcome.kind == "lost":
            await self.write_down(work)
            self._signals.signal(self.node_id, Signal(kind=Kind.WORK, broker_id=work.intent.broker_id))
            return None
        if outcome.kind in ("later", "dropped"):
            await self.write_down(work)
            return await self._storage.put_back(_put_back(work, outcome))
        async with work.recording:
            end = _end(work, outcome)
            if work.recorded or work.plan is None:
                return await self._storage.end(end)
            return await self._storage.insert_ended(work.plan, end)

    async def write_down(self, work: Work) -> None:
        """Give LOCAL work its row, in this node's hands or, if its session is gone, pending; once."""
        async with work.recording:
            if work.recorded or work.plan is None:
                return
            plan = msgspec.structs.replace(work.plan, attempts=work.attempt, claim=work.link.session)
            recorded = await self._storage.record(Recording(intents=(plan,)))
            work.recorded = True
        self._observer.tell(recorded.transitions)
        self._waiters.recorded(work.intent.id)

    def _tell(self, work: Work, outcome: Outcome, settled: Settled) -> None:
        self._observer.tell(settled.transitions)
        intent = settled.intent
        if not settled.accepted:
            self.late_ends += 1
            self._signals.signal(self.node_id, Signal(kind=Kind.ENDED, ids=(work.intent.id,)))
        elif intent and intent.state.ended:
            self._waiters.ended(intent, settled.agent)
            self._tell_entry(intent)
        if outcome.kind in ("later", "dropped"):
            self._tasks.start_soon(self._wake_in, outcome.retry_in, work.intent.broker_id)
        if settled.waiting:
            work.link.wake()

    def _tell_entry(self, intent: Intent) -> None:
        """Wake the hub whose caller waits, if it is another."""
        if intent.node_id != self.node_id:
            self._signals.signal(NodeId(intent.node_id), Signal(kind=Kind.ENDED, ids=(intent.id,)))

    async def _wake_in(self, seconds: float, broker_id: str) -> None:
        await anyio.sleep(seconds)
        self._signals.signal(self.node_id, Signal(kind=Kind.WORK, broker_id=broker_id))

    # -- cancel, requeue, stop -------------------------------------------------------------------------------------

    async def cancel(self, intent_id: IntentId) -> Cancelled:
        """End it if it is pending; else ask whoever has it in hand to stop it. Raises: NotFound."""
        cancelled = await self._storage.cancel(intent_id, self.node_id)
        self._observer.tell(cancelled.transitions)
        if cancelled.intent.state.ended:
            self._waiters.ended(cancelled.intent)
        else:
            self._stop(cancelled.intent)
        return cancelled

    def _stop(self, intent: Intent) -> None:
        if not self.stop_here(intent.id) and intent.claimed_by:
            self._signals.signal(NodeId(intent.claimed_by), Signal(kind=Kind.CANCEL, ids=(intent.id,)))

    def stop_here(self, intent_id: str) -> bool:
        """Stop what is in this node's hands: unsent, its turn ends it; sent, the broker is asked. False: not here."""
        work = self.lanes.find(intent_id)
        if work is None:
            return False
        work.cancelled = True
        work.link.cancel(intent_id)
        return True

    async def requeue(self, intent_id: IntentId, principal: str, request_id: str) -> Intent:
        """Do an ended operation again, as a new intent that names the old one. Raises: NotFound, InvalidState."""
        old = await self._found(intent_id)
        view = await self._storage.find_agent(old.agent_id)
        if view is None:
            raise NotFound(f"agent {old.agent_slug} is gone")
        plan = requeued(old, IntentId(self._clock.uuid7()), self.node_id, principal, request_id, self._clock)
        plan = msgspec.structs.replace(plan, deadline_in=self._settings.deadline)
        recorded = await self._storage.record(Recording(intents=(plan,)))
        self._observer.tell(recorded.transitions)
        self._kick(recorded.intents[0])
        return recorded.intents[0]

    async def hand_back(self) -> None:
        """The hub stops: LOCAL calls in flight get their row, and their callers are told to follow it."""
        self.draining = True
        for work in self.lanes.unrecorded():
            try:
                await self.write_down(work)
            except StorageUnavailable:
                log.error("dispatch %s could not be recorded before the stop", work.intent.id)
        self._waiters.send_away()


def in_hand(plan: NewIntent, link: Link, *, deadline_in: float, clock: Clock) -> Intent:
    """LOCAL work as the intent that its row would be: claimed by this session, first attempt."""
    now = clock.now()
    return Intent(
        id=plan.id,
        op=plan.op,
        lane=plan.lane,
        state=State.IN_PROGRESS,
        broker_id=plan.broker_id,
        agent_id=plan.agent_id,
        agent_slug=plan.agent_slug,
        project_id=plan.project_id,
        attempts=1,
        claimed_by=link.session.node_id,
        claimed_epoch=link.session.epoch,
        claimed_session=link.session.session_id,
        claimed_at=now,
        deadline_at=type(now)(now + int(deadline_in * 1_000_000)),
        route=plan.route,
        principal=plan.principal,
        request_id=plan.request_id,
        node_id=plan.node_id,
        traceparent=plan.traceparent,
        run_id=plan.run_id,
        hold=plan.hold,
        args=plan.args,
        created_at=plan.created_at or now,
    )


def requeued(
    old: Intent, intent_id: IntentId, node_id: NodeId, principal: str, request_id: str, clock: Clock
) -> NewIntent:
    """A new wish with the old one's content; it never takes over the old one's claim, values or key."""
    return NewIntent(
        id=intent_id,
        op=old.op,
        lane=old.lane,
        broker_id=BrokerId(old.broker_id),
        agent_id=old.agent_id,  # type: ignore[arg-type]
        agent_slug=old.agent_slug,
        project_id=old.project_id,
        deadline_in=0.0,
        route=Route.HOLD,
        principal=principal,
        request_id=request_id,
        node_id=node_id,
        run_id=clock.uuid7() if old.op in RUNS else old.run_id,
        hold=True,
        args=old.args,
        requeued_from=old.id,
    )


def _end(work: Work, outcome: Outcome) -> End:
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
        agent_id=work.intent.agent_id,  # type: ignore[arg-type]
        change=outcome.change,
        sent_at=exchange.sent_at if exchange else None,
        accepted_at=exchange.accepted_at if exchange else None,
        failures=outcome.failures,
    )


def _put_back(work: Work, outcome: Outcome) -> PutBack:
    return PutBack(
        intent_id=work.intent.id,
        op=work.intent.op,
        session=work.link.session,
        attempt=work.attempt,
        reason=outcome.reason,
        retry_in=outcome.retry_in,
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


def _unrecorded(intent: Intent) -> OutcomeUnrecorded:
    error = OutcomeUnrecorded()
    error.dispatch_id = intent.id
    return error


def _unexplained(intent: Intent) -> Failure:
    return Failure(code=str(intent.state), message=f"the operation ended {intent.state}", status=409)


def _refused(call: Call, intent_id: IntentId, node_id: NodeId, reason: str, clock: Clock) -> Transition:
    return Transition(
        intent_id=intent_id,
        op=call.op,
        n=1,
        at=clock.now(),
        from_state=ACCEPTED,
        to_state=REFUSED,
        reason=reason,
        node_id=node_id,
    )
