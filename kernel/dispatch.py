"""THE STORY: a call is accepted, and what was accepted is delivered. Two lines that meet in a durable row."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.abc
import msgspec

from kernel.agent import Phase
from kernel.answers import Answers
from kernel.attempt import Attempts, unsent
from kernel.broker import Broker
from kernel.call import Answer, Call
from kernel.clock import Clock
from kernel.directs import Directs
from kernel.ends import Ends
from kernel.errors import Draining, InvalidState, NotFound, Unavailable
from kernel.intent import ENDS_RUN, Intent, IntentId, Lane, Op, State, lane_of
from kernel.lanes import Lanes, Work
from kernel.link import Link
from kernel.links import Links
from kernel.node import NodeId
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.plan import Planned, Planner
from kernel.pulse import Pulse
from kernel.route import Route, RouteRequest, direct_applies
from kernel.routing import Decided, Routing
from kernel.signals import BusState, Signals
from kernel.storage import Cancelled, IdempotencyKey, NewIntent, Recorded, Recording, Storage
from kernel.tunnel import Outcome
from kernel.waiters import Waiter, Waiters


class Dispatcher:
    """The first line: accepts calls, and changes of mind. Everything that it needs is handed in by the hub."""

    def __init__(
        self,
        *,
        storage: Storage,
        signals: Signals,
        links: Links,
        directs: Directs,
        waiters: Waiters,
        routing: Routing,
        planner: Planner,
        delivery: Delivery,
        answers: Answers,
        notices: Notices,
        observer: Observer,
        pulse: Pulse,
        clock: Clock,
    ) -> None:
        self._storage = storage
        self._signals = signals
        self._links = links
        self._directs = directs
        self._waiters = waiters
        self._routing = routing
        self._planner = planner
        self._delivery = delivery
        self._answers = answers
        self._notices = notices
        self._observer = observer
        self._pulse = pulse
        self._clock = clock
        self.draining = False

    # -- accept ------------------------------------------------------------------------------------------------------

    async def call(self, call: Call) -> Answer:
        """Accept a call and wait for its end as long as the caller asks.

        Raises: every error of design/api.md that an operation can end with; `dispatch_id` is set where a row exists.
        """
        intent_id = IntentId(self._clock.uuid7())
        with self._waiters.register(intent_id) as waiter:
            intent = await self.accept(call, intent_id, waiter)
            if intent.id == intent_id:
                return await self._answers.of(intent, waiter, _wait(call, intent))
        return await self._answers.again(intent.id, call.wait)

    async def repeated(self, key: IdempotencyKey, wait: float | None) -> Answer | None:
        """What an earlier request with this key got; asked before anything is refused that came with it. What is not
        refused is recorded, and finds the earlier one there."""
        return await self._answers.of_key(key, wait)

    async def accept(self, call: Call, intent_id: IntentId, waiter: Waiter) -> Intent:
        """Route it; then record and signal it, or put it straight into its lane (LOCAL, P7)."""
        if self.draining:
            raise Draining()
        decided = self._routing.decide(call, intent_id)
        plan = self._drafted(call, intent_id, decided)
        link = self._links.of(plan.broker_id) if decided.advice.route is Route.LOCAL else None
        if link and self._needs_no_row(call, link):
            return self._go(call, plan, link)
        if decided.advice.route is Route.DIRECT:
            await self._reach(call, decided.request.broker)
        waiter.recorded = True
        recorded = await self._record(
            Recording(
                intents=(plan,),
                key=call.key,
                agent=call.new_agent,
                provider=call.provider,
                supersedes_starts=call.op in ENDS_RUN and self._pulse.calm,
            )
        )
        if recorded.repeated and recorded.repeated.intent_id:
            return await self._answers.found(recorded.repeated.intent_id)
        self._notices.wake_owners([Planned(intent=plan, owner=self._owner(decided.request))])
        return recorded.intents[0]

    async def _reach(self, call: Call, broker: Broker) -> None:
        """Claim the broker over HTTP. Who does not let the call wait is told before anything is stored when its
        endpoint is silent; else it is stored whether the broker can be had now or later. Raises: BrokerOffline."""
        if call.hold:
            self._directs.want(broker)
        else:
            await self._directs.hold(broker)

    async def plan(self, call: Call) -> Planned:
        """Route one of many calls that are recorded together. Raises: why it is refused."""
        intent_id = IntentId(self._clock.uuid7())
        decided = self._routing.decide(call, intent_id)
        if decided.advice.route is Route.DIRECT:
            await self._reach(call, decided.request.broker)
        intent = msgspec.structs.replace(self._drafted(call, intent_id, decided), key=call.key)
        return Planned(intent=intent, owner=self._owner(decided.request))

    def _drafted(self, call: Call, intent_id: IntentId, decided: Decided) -> NewIntent:
        """Its history says which other hub is woken for it."""
        owner = self._owner(decided.request)
        woken = {} if owner in (None, self._pulse.node_id) else {"to": str(owner)}
        return self._planner.plan(call, intent_id, decided.advice.route, {**decided.why, **woken})

    async def accept_together(
        self, planned: Sequence[Planned], *, key: IdempotencyKey | None, answer: bytes
    ) -> Recorded:
        """Record many in one transaction, all or none, and wake each owner once. With a key, `answer` is kept."""
        if self.draining:
            raise Draining()
        recorded = await self._record(
            Recording(intents=tuple(one.intent for one in planned), key=key, answer=answer if key else None)
        )
        if recorded.repeated is None and not recorded.taken:
            self._notices.wake_owners(planned)
        return recorded

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
        intent = self._planner.in_hand(plan, link)
        until = self._clock.monotonic() + self._planner.seconds_left(plan)
        self._delivery.lanes.enter(
            Work(intent=intent, link=link, until=until, plan=plan, view=call.view, values=call.values)
        )
        return intent

    async def _record(self, recording: Recording) -> Recorded:
        started = self._clock.monotonic()
        recorded = await self._storage.record(recording)
        self._observer.stage("record", self._clock.monotonic() - started)
        self._observer.tell(recorded.transitions)
        for superseded in recorded.superseded:
            self._tell_ended(superseded)
        return recorded

    def _owner(self, request: RouteRequest) -> NodeId | None:
        """None: whoever comes to hold the broker over HTTP, which may be another node that was asked as well."""
        if request.held_elsewhere and not request.socket_here:
            return NodeId(request.broker.connected_hub_id or "")
        claiming = direct_applies(request) and self._links.of(request.broker.id) is None
        return None if claiming else self._pulse.node_id

    # -- cancel, requeue ---------------------------------------------------------------------------------------------

    async def cancel(self, intent_id: IntentId, by: str) -> Cancelled:
        """End it if it is pending; else ask whoever has it in hand to stop it. Raises: NotFound; Unavailable while what
        looks pending may be in hand all the same."""
        found = await self._answers.found(intent_id)
        if found.state is State.PENDING and not await self._answers.may_end(found):
            raise Unavailable("this hub lost sight of the database a moment ago: cancel it again", retry_after=5.0)
        cancelled = await self._storage.cancel(intent_id, self._pulse.node_id, by)
        self._observer.tell(cancelled.transitions)
        if cancelled.intent.state.ended:
            self._tell_ended(cancelled.intent)
            self._notices.wake(cancelled.intent.broker_id)
        else:
            self._delivery.stop(cancelled.intent)
        return cancelled

    async def requeue(self, intent_id: IntentId, principal: str, request_id: str) -> Intent:
        """Do an ended operation again, as a new intent that names the old one. Raises: NotFound, InvalidState."""
        old = await self._answers.found(intent_id)
        if not old.state.ended:
            raise InvalidState(f"the dispatch is {old.state}: only one that ended can be done again")
        if old.op is Op.FINALIZE_ENV:
            raise InvalidState("the values that it brought are not kept: send them again")
        view = await self._storage.find_agent(old.agent_id)
        if view is None or view.agent.deleted_at is not None:
            raise NotFound(f"agent {old.agent_slug} is gone")
        recorded = await self._storage.record(Recording(intents=(self._planner.again(old, principal, request_id),)))
        self._observer.tell(recorded.transitions)
        self._notices.kick(recorded.intents[0])
        return recorded.intents[0]

    def _tell_ended(self, intent: Intent) -> None:
        """Those who wait for it may do so on the hub that accepted it."""
        self._waiters.ended(intent)
        self._notices.ended(intent)


def _wait(call: Call, intent: Intent) -> float | None:
    """Who lets a call wait for a broker that is away is told so at once, unless it says how long it waits itself."""
    held = call.deliver == "hold" and intent.route == Route.HOLD
    return 0 if held and call.wait is None else call.wait


class Delivery:
    """The second line: delivers what is claimed, or went straight into its lane."""

    def __init__(
        self, *, attempts: Attempts, ends: Ends, notices: Notices, clock: Clock, tasks: anyio.abc.TaskGroup
    ) -> None:
        self._attempts = attempts
        self._ends = ends
        self._notices = notices
        self._clock = clock
        self.lanes = Lanes(tasks, clock, deliver=self.deliver, put_aside=self.put_aside)

    async def deliver(self, work: Work) -> None:
        """Execute what is claimed and write its end. Lanes alone call this, one work of a lane at a time."""
        await self._ends.settle(work, await self._outcome(work))

    async def put_aside(self, work: Work) -> None:
        """End what waited behind others until nobody wanted it any more, or until its time was over."""
        await self._ends.settle(work, unsent(work))

    async def _outcome(self, work: Work) -> Outcome:
        """Wait for a place in the broker's window, then carry it out; what is given up before that is not sent."""
        with work.patience(work.until - self._clock.monotonic()):
            if work.intent.lane is Lane.MESSAGE and not await self._agent_runs(work):
                return Outcome(kind="dropped", reason="agent_not_running")
            async with work.link.window.place(work.intent.lane, alone=work.alone):
                if work.set_out():
                    return await self._attempts.make(work)
        return unsent(work)

    async def _agent_runs(self, work: Work) -> bool:
        """Control goes before messages when both wait; after it the agent may not run any more, and the message waits
        in its row for the next start."""
        control = self.lanes.control_of(work.intent.agent_id)
        if control is None:
            return True
        with work.without_place():
            await control.settled.wait()
        return control.agent is None or control.agent.phase is Phase.RUNNING

    def stop(self, intent: Intent) -> None:
        """Stop it wherever it is in hand: here, or on the node that claimed it. What is here may be an attempt that was
        lost, and is about to go."""
        work = self.lanes.find(intent.id)
        self.stop_here(intent.id)
        if work is None or work.attempt != intent.attempts:
            self._notices.stop(intent)

    def stop_here(self, intent_id: str) -> None:
        """Stop what is in this node's hands: unsent, its turn ends it; sent, the broker is asked. What comes into its
        hands a moment later is not sent."""
        work = self.lanes.find(intent_id)
        if work is None:
            self.lanes.refuse(intent_id)
            return
        work.cancelled = True
        work.end_wait()
        work.link.cancel(intent_id)
