"""Turns an accepted call into the intent that is written, or held in hand until it must be."""

from __future__ import annotations

import json
from typing import Protocol

import msgspec

from kernel.broker import BrokerId
from kernel.call import Call
from kernel.clock import Clock, Instant
from kernel.intent import Intent, IntentId, Op, State, lane_of
from kernel.keyring import INTENT_VALUES, Keyring
from kernel.link import Link
from kernel.node import NodeId
from kernel.route import Route
from kernel.storage import NewIntent
from kernel.tunnel import RUNS


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One of many calls that are recorded together: its intent, and who is woken for it."""

    intent: NewIntent
    owner: NodeId | None


class Spans(Protocol):
    """Seconds until an intent's deadline, by what it is."""

    @property
    def deadline(self) -> float: ...
    @property
    def message_ttl(self) -> float: ...
    @property
    def now_ttl(self) -> float: ...


class Planner:
    """Makes intents on this node."""

    def __init__(self, *, node_id: NodeId, keyring: Keyring, clock: Clock, spans: Spans) -> None:
        self._node_id = node_id
        self._keyring = keyring
        self._clock = clock
        self._spans = spans

    def plan(self, call: Call, intent_id: IntentId, route: Route, why: dict[str, str]) -> NewIntent:
        agent = call.view.agent
        return NewIntent(
            id=intent_id,
            op=call.op,
            lane=lane_of(call.op),
            broker_id=BrokerId(agent.runtime_broker_id or ""),
            agent_id=agent.id,
            agent_slug=agent.slug,
            project_id=agent.project_id,
            deadline_in=self._deadline_in(call),
            deadline_at=call.deadline_at,
            route=route,
            advice=why,
            principal=call.principal,
            request_id=call.request_id,
            node_id=self._node_id,
            traceparent=call.traceparent or own_trace(intent_id),
            run_id=self._clock.uuid7() if call.op in RUNS else agent.run_id,
            hold=call.hold,
            args=call.args,
            sealed=self._sealed(call, intent_id),
            message=call.message and msgspec.structs.replace(call.message, id=intent_id),
            created_at=self._clock.now(),
        )

    def _deadline_in(self, call: Call) -> float:
        own = self._spans.message_ttl if call.op is Op.MESSAGE else self._spans.deadline
        if call.deliver == "now":
            own = min(own, self._spans.now_ttl)
        return own if call.deadline_in is None else min(own, call.deadline_in)

    def _sealed(self, call: Call, intent_id: IntentId) -> bytes | None:
        if call.values is None:
            return None
        return self._keyring.seal(INTENT_VALUES, json.dumps(call.values).encode(), intent_id)

    def seconds_left(self, plan: NewIntent) -> float:
        if plan.deadline_at is None:
            return plan.deadline_in
        return max(0.0, min(plan.deadline_in, (plan.deadline_at - self._clock.now()) / 1_000_000))

    def in_hand(self, plan: NewIntent, link: Link) -> Intent:
        """LOCAL work as the intent that its row would be: claimed by this session, first attempt."""
        now = self._clock.now()
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
            deadline_at=Instant(now + int(self.seconds_left(plan) * 1_000_000)),
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

    def again(self, old: Intent, principal: str, request_id: str) -> NewIntent:
        """A new wish with the old one's content; it never takes over the old one's claim, values or key."""
        intent_id = IntentId(self._clock.uuid7())
        return NewIntent(
            id=intent_id,
            op=old.op,
            lane=old.lane,
            broker_id=BrokerId(old.broker_id),
            agent_id=old.agent_id,
            agent_slug=old.agent_slug,
            project_id=old.project_id,
            deadline_in=self._spans.message_ttl if old.op is Op.MESSAGE else self._spans.deadline,
            route=Route.HOLD,
            principal=principal,
            request_id=request_id,
            node_id=self._node_id,
            traceparent=own_trace(intent_id),
            run_id=self._clock.uuid7() if old.op in RUNS else old.run_id,
            hold=True,
            args=old.args,
            requeued_from=old.id,
        )


def own_trace(intent_id: IntentId) -> str:
    """The W3C trace of a call that came without one: it begins here, and every request frame carries it."""
    bare = intent_id.replace("-", "")
    return f"00-{bare}-{bare[16:]}-00"
