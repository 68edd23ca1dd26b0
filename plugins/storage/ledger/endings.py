"""How an intent ends without an answer: expired, cancelled, superseded or poison; and what that does to its agent."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kernel import STARTS, Failure, Intent, Op, OutcomeUnknown, Phase, State, Transition
from plugins.storage.ledger.eras import unsure
from plugins.storage.ledger.history import step
from plugins.storage.ledger.homes import HOMES, MESSAGES, Home, home_of
from plugins.storage.ledger.query import NOW, Query, Tx, param
from plugins.storage.schema import agents

SUPERSEDED = Failure(
    code="cancelled", message="a later stop or delete of the same agent came before anybody took it", status=409
)
CANCELLED = Failure(code="cancelled", message="it was cancelled before anybody took it", status=409)
AGENT_DELETED = Failure(code="cancelled", message="its agent was deleted before it was delivered", status=409)
POISON = Failure(
    code="poison",
    message="three processes of the broker died while they had it in hand: it is not sent again",
    status=502,
)

MOST_HELD = 100
"""Messages that end with their agent at once: its end is written in time however many it has. The sweep ends the
others."""

_a = agents.c
_REMOVE = Query[Any](sa.delete(agents).where(_a.id == param("which")))
_MARK = Query[Any](
    sa.update(agents)
    .values(
        phase=Phase.ERROR,
        activity=None,
        message=param("said"),
        updated=NOW,
        state_version=_a.state_version + 1,
    )
    .where(_a.id == param("which"), _a.deleted_at.is_(None))
)


def _finish(home: Home) -> Query[Intent]:
    statement = home.update(
        state=param("to"), error=param("failure"), ended_at=NOW, sealed=None, next_attempt_at=None
    ).where(
        home.c.id == param("which"),
        home.state == param("came_from"),
        home.c.attempts == param("tried"),
    )
    return Query(statement, home.shape.read)


_FINISH = {home.lane: _finish(home) for home in HOMES}


def finish_pending(
    tx: Tx,
    intent: Intent,
    state: State,
    failure: Failure,
    reason: str,
    node_id: str,
    detail: dict[str, Any] | None = None,
) -> tuple[Intent, Transition] | None:
    """`pending` → `state` by compare-and-set. Only one that surely never was claimed may be told as "did not
    happen"."""
    if intent.attempts > 0 or unsure(tx, intent.seq):
        failure = OutcomeUnknown().as_failure()
    ended = _ended(tx, intent, State.PENDING, state, failure)
    if ended is None:
        return None
    if ended.op is Op.CREATE:
        _creation_ended(tx, ended, failure)
    return ended, step(tx, ended, State.PENDING, reason, node_id, attempt=intent.attempts, detail=detail)


_HELD = Query[Intent](
    MESSAGES.select()
    .where(
        MESSAGES.c.broker_id == param("broker"),
        MESSAGES.agent == param("agent"),
        MESSAGES.unfinished(),
        MESSAGES.state == State.PENDING,
    )
    .order_by(MESSAGES.c.seq)
    .limit(MOST_HELD),
    MESSAGES.shape.read,
)


def drop_held(tx: Tx, gone: Intent, node_id: str) -> list[tuple[Intent, Transition]]:
    """Messages that wait for an agent which the end of `gone` deleted: nobody could deliver them any more."""
    by = {"by": gone.id, "op": gone.op}
    held = tx.all(_HELD, broker=gone.broker_id, agent=gone.agent_id)
    ended = (finish_pending(tx, one, State.CANCELLED, AGENT_DELETED, "agent_deleted", node_id, by) for one in held)
    return [moved for moved in ended if moved]


def finish_with_held(
    tx: Tx,
    intent: Intent,
    state: State,
    failure: Failure,
    reason: str,
    node_id: str,
    detail: dict[str, Any] | None = None,
) -> list[tuple[Intent, Transition]]:
    """The same as `finish_pending`, and what waits for an agent that goes with its creation. Nothing: not pending."""
    moved = finish_pending(tx, intent, state, failure, reason, node_id, detail)
    if moved is None:
        return []
    gone = intent.op is Op.CREATE and not _may_have_happened(moved[0].error)
    return [moved, *(drop_held(tx, moved[0], node_id) if gone else ())]


def poison(tx: Tx, intent: Intent, node_id: str) -> tuple[Intent, Transition] | None:
    """It is not sent a fourth time. A start that may have half happened leaves its agent in `error`."""
    ended = _ended(tx, intent, intent.state, State.FAILED, POISON)
    if ended is None:
        return None
    if ended.op in STARTS:
        tx.run(_MARK, which=ended.agent_id, said=POISON.message)
    return ended, step(tx, ended, intent.state, "poison", node_id, attempt=intent.attempts)


def _ended(tx: Tx, intent: Intent, came_from: State, state: State, failure: Failure) -> Intent | None:
    return tx.one(
        _FINISH[home_of(intent.op).lane],
        which=intent.id,
        came_from=came_from,
        tried=intent.attempts,
        to=state,
        failure=failure,
    )


def _creation_ended(tx: Tx, intent: Intent, failure: Failure) -> None:
    if _may_have_happened(failure):
        tx.run(_MARK, which=intent.agent_id, said=failure.message)
    else:
        tx.run(_REMOVE, which=intent.agent_id)


def _may_have_happened(failure: Failure | None) -> bool:
    return failure is not None and failure.code == OutcomeUnknown.code
