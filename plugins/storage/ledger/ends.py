"""What became of work in hand: ended, put back, cancelled. Every write is refused by the statement that would make it
when the row no longer is in the hands that write."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from kernel import Agent, Cancelled, End, Intent, NewIntent, NodeId, NotFound, Phase, PutBack, Settled, State, is_uuid
from plugins.storage.ledger.agents import agent_by_id, change_agent
from plugins.storage.ledger.births import insert, known_before
from plugins.storage.ledger.endings import CANCELLED, drop_held, finish_with_held
from plugins.storage.ledger.history import born_ended, step
from plugins.storage.ledger.homes import CONTROL, HOMES, IN_PROGRESS, MESSAGES, Home, home_of
from plugins.storage.ledger.lookups import find_intent
from plugins.storage.ledger.query import NOW, ONE, Overtaken, Query, Tx, any_of, first, param
from plugins.storage.ledger.rows import NOBODY
from plugins.storage.schema import runtime_brokers

LOST = frozenset({"link_lost", "owner_lost"})
"""Reasons of a put-back that are no answer: what had been sent may still have been in the broker's hands."""


def _in_these_hands(home: Home) -> Any:
    return sa.and_(
        home.c.id == param("which"),
        home.state == IN_PROGRESS,
        home.c.claimed_epoch == param("epoch"),
        home.c.attempts == param("attempt"),
    )


def _end(home: Home) -> Query[Intent]:
    statement = home.update(
        state=param("to"),
        result=param("outcome"),
        error=param("failure"),
        sent_at=sa.func.coalesce(home.c.sent_at, param("sent")),
        accepted_at=sa.func.coalesce(home.c.accepted_at, param("accepted")),
        failures=home.c.failures + param("more"),
        ended_at=NOW,
        sealed=None,
        next_attempt_at=None,
    )
    return Query(statement.where(_in_these_hands(home)), home.shape.read)


def _put_back(home: Home) -> Query[Intent]:
    statement = home.update(
        state=State.PENDING,
        claimed_by=None,
        claimed_session=None,
        next_attempt_at=param("due"),
        failures=home.c.failures + param("more"),
        error=sa.func.coalesce(param("failure", home.c.error.type), home.c.error),
        sent_at=sa.case((param("lost", sa.Integer()) == 1, home.c.sent_at), else_=None),
        accepted_at=None,
    )
    return Query(statement.where(_in_these_hands(home)), home.shape.read)


_END = {home.lane: _end(home) for home in HOMES}
_PUT_BACK = {home.lane: _put_back(home) for home in HOMES}


def end(tx: Tx, ended: End) -> Settled:
    """The outcome, the agent's change and the history, or nothing at all."""
    intent = tx.one(
        _END[home_of(ended.op).lane],
        which=ended.intent_id if is_uuid(ended.intent_id) else NOBODY,
        epoch=ended.session.epoch,
        attempt=ended.attempt,
        to=ended.state,
        outcome=ended.result,
        failure=ended.error,
        sent=ended.sent_at,
        accepted=ended.accepted_at,
        more=ended.failures,
    )
    if intent is None:
        return _ended_before(tx, ended)
    agent = change_agent(tx, intent.agent_id, ended.change)
    return _with_dropped(tx, ended, _settled(tx, ended, intent, agent))


def _with_dropped(tx: Tx, ended: End, settled: Settled) -> Settled:
    """What was held for an agent goes with it."""
    kept = settled.agent is not None and settled.agent.deleted_at is None
    if settled.intent is None or kept or not (ended.change and ended.change.removal):
        return settled
    dropped = drop_held(tx, settled.intent, ended.session.node_id)
    return msgspec.structs.replace(
        settled,
        dropped=tuple(intent for intent, _ in dropped),
        transitions=(*settled.transitions, *(told for _, told in dropped)),
    )


def _ended_before(tx: Tx, ended: End) -> Settled:
    """Refused, unless this very end was written before and only its answer was lost."""
    intent = find_intent(tx, ended.intent_id)
    mine = (
        intent is not None
        and intent.state is ended.state
        and intent.claimed_epoch == ended.session.epoch
        and intent.claimed_session == ended.session.session_id
        and intent.attempts == ended.attempt
    )
    agent = agent_by_id(tx, ended.agent_id)
    if intent is None or not mine:
        return Settled(accepted=False, intent=intent, agent=agent)
    return Settled(accepted=True, intent=intent, agent=agent, waiting=_waiting(tx, intent, agent))


def put_back(tx: Tx, back: PutBack) -> Settled:
    """An attempt that is no end: pending again, tried once more from `retry_in` on."""
    intent = tx.one(
        _PUT_BACK[home_of(back.op).lane],
        which=back.intent_id if is_uuid(back.intent_id) else NOBODY,
        epoch=back.session.epoch,
        attempt=back.attempt,
        due=tx.now + int(back.retry_in * 1_000_000) if back.retry_in > 0 else None,
        more=back.failures,
        failure=back.error,
        lost=int(back.reason in LOST),
    )
    if intent is None:
        return Settled(accepted=False, intent=find_intent(tx, back.intent_id))
    agent = agent_by_id(tx, intent.agent_id)
    return _settled(tx, back, intent, agent)


def _settled(tx: Tx, said: End | PutBack, intent: Intent, agent: Agent | None) -> Settled:
    """The step out of the hands that had it stands in the history."""
    session = said.session
    came_from, attempt = State.IN_PROGRESS, said.attempt
    told = step(tx, intent, came_from, said.reason, session.node_id, epoch=session.epoch, attempt=attempt)
    return Settled(accepted=True, intent=intent, agent=agent, transitions=(told,), waiting=_waiting(tx, intent, agent))


# -- LOCAL calls --------------------------------------------------------------------------------------------

# Shared: whoever claims the session meanwhile waits until the agent is changed, or changed it first.
_EPOCH = Query[int](
    sa.select(runtime_brokers.c.connection_epoch)
    .where(runtime_brokers.c.id == param("which"))
    .with_for_update(read=True),
    first,
)


def insert_ended(tx: Tx, new: NewIntent, ended: End) -> Settled:
    """A LOCAL call and its outcome. When the broker was claimed again since, the outcome is a fact all the same, but
    the agent is left to the broker's next report."""
    if known_before(tx, new) is not None:
        return end(tx, ended)
    session = ended.session
    intent = insert(
        tx,
        new,
        state=ended.state,
        attempts=ended.attempt,
        claimed_by=session.node_id,
        claimed_epoch=session.epoch,
        claimed_session=session.session_id,
        claimed_at=new.created_at or tx.now,
        sent_at=ended.sent_at,
        accepted_at=ended.accepted_at,
        failures=ended.failures,
        result=ended.result,
        error=ended.error,
        ended_at=tx.now,
        sealed=None,
    )
    current = tx.one(_EPOCH, which=new.broker_id) == session.epoch
    agent = change_agent(tx, new.agent_id, ended.change if current else None)
    steps = born_ended(tx, intent, new.advice, ended.reason, current=current)
    waiting = _waiting(tx, intent, agent)
    settled = Settled(accepted=True, intent=intent, agent=agent, transitions=tuple(steps), waiting=waiting)
    return _with_dropped(tx, ended, settled)


# -- what waits behind it -----------------------------------------------------------------------------------


def pending(home: Home, broker: Any, agent: Any) -> Any:
    """Whether something of this agent might be claimed now."""
    table = home.table.alias(f"next_{home.lane}")
    found = sa.select(ONE).where(
        table.c.broker_id == broker,
        table.c[home.agent.name] == agent,
        home.unfinished(table),
        table.c[home.state.name] == State.PENDING,
        table.c.deadline_at > NOW,
        sa.or_(table.c.next_attempt_at.is_(None), table.c.next_attempt_at <= NOW),
    )
    return any_of(found).is_not(None)


def _pending(home: Home) -> Any:
    return pending(home, param("broker"), param("agent"))


_PENDING_CONTROL = Query[int](sa.select(_pending(CONTROL)), first)
_PENDING = Query[int](sa.select(sa.or_(_pending(CONTROL), _pending(MESSAGES))), first)


def _waiting(tx: Tx, intent: Intent, agent: Agent | None) -> bool:
    """Something of this agent is pending and might be claimed now."""
    runs = agent is not None and agent.phase is Phase.RUNNING and agent.deleted_at is None
    query = _PENDING if runs else _PENDING_CONTROL
    found: int | None = tx.one(query, broker=intent.broker_id, agent=intent.agent_id)
    return bool(found)


# -- cancel -------------------------------------------------------------------------------------------------


def cancel(tx: Tx, intent_id: str, node_id: NodeId, by: str) -> Cancelled:
    """Raises: NotFound."""
    intent = find_intent(tx, intent_id)
    if intent is None:
        raise NotFound(f"there is no dispatch {intent_id}")
    if intent.state.ended:
        return Cancelled(outcome="already_ended", intent=intent)
    detail = {"by": by} if by else None
    moved = finish_with_held(tx, intent, State.CANCELLED, CANCELLED, "cancelled", node_id, detail)
    if not moved and intent.state is State.PENDING:
        raise Overtaken  # taken or ended meanwhile: who has it in hand now?
    if not moved:
        return Cancelled(outcome="cancel_requested", intent=intent)
    return Cancelled(outcome="cancelled", intent=moved[0][0], transitions=tuple(told for _, told in moved))
