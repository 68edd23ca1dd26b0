"""How an intent ends without an answer: expired, cancelled, superseded or poison; and what that does to its agent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kernel import STARTS, Failure, Intent, Lane, Op, OutcomeUnknown, Phase, State, Transition
from plugins.storage.ledger.eras import sure_from
from plugins.storage.ledger.history import step, steps
from plugins.storage.ledger.homes import HOMES, MESSAGES, Home, home_of
from plugins.storage.ledger.query import NOW, Query, Tx, among, param
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
_REMOVE = Query[Any](sa.delete(agents).where(among(_a.id, "which")))
_MARK = Query[Any](
    sa.update(agents)
    .values(
        phase=Phase.ERROR,
        activity=None,
        message=param("said"),
        updated=NOW,
        state_version=_a.state_version + 1,
    )
    .where(among(_a.id, "which"), _a.deleted_at.is_(None))
)


def _finish(home: Home) -> Query[Intent]:
    statement = home.update(
        state=param("to"), error=param("failure"), ended_at=NOW, sealed=None, next_attempt_at=None
    ).where(
        among(home.c.id, "these"),
        home.state == param("came_from"),
        home.c.attempts == param("tried"),
    )
    return Query(statement, home.shape.read)


_FINISH = {home.lane: _finish(home) for home in HOMES}
Moved = tuple[Intent, Transition]
"""An intent as it is now, and the step that brought it there."""


def finish_pending(
    tx: Tx,
    intents: Sequence[Intent],
    state: State,
    failure: Failure,
    reason: str,
    node_id: str,
    detail: dict[str, Any] | None = None,
) -> list[Moved]:
    """`pending` → `state` by compare-and-set, however many in a few statements: those that still were pending. Only one
    that surely never was claimed may be told as "did not happen"."""
    ended: list[Intent] = []
    for (lane, tried, unknown), these in _alike(tx, intents).items():
        told = OutcomeUnknown().as_failure() if unknown else failure
        alike = _ended(tx, lane, these, State.PENDING, tried, state, told)
        _creations_ended(tx, [one.agent_id for one in alike if one.op is Op.CREATE], told)
        ended += alike
    ended.sort(key=lambda one: one.seq)
    # From what was compared, not from what was read: it may have been put back since.
    moved = [(msgspec.structs.replace(after, state=State.PENDING), after) for after in ended]
    written = steps(tx, moved, reason, lambda _: node_id, detail)
    return [(after, transition) for (_, after), transition in zip(moved, written, strict=True)]


def _alike(tx: Tx, intents: Sequence[Intent]) -> dict[tuple[Lane, int, bool], list[str]]:
    """The ids of those that one statement ends: of one table, tried as often, all or none of them of unknown
    outcome."""
    sure = sure_from(tx) if intents else None
    groups: defaultdict[tuple[Lane, int, bool], list[str]] = defaultdict(list)
    for intent in intents:
        unknown = intent.attempts > 0 or sure is None or intent.seq < sure
        groups[home_of(intent.op).lane, intent.attempts, unknown].append(intent.id)
    return groups


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


def drop_held(tx: Tx, gone: Intent, node_id: str) -> list[Moved]:
    """Messages that wait for an agent which the end of `gone` deleted: nobody could deliver them any more."""
    by = {"by": gone.id, "op": gone.op}
    held = tx.all(_HELD, broker=gone.broker_id, agent=gone.agent_id)
    return finish_pending(tx, held, State.CANCELLED, AGENT_DELETED, "agent_deleted", node_id, by)


def finish_with_held(
    tx: Tx,
    intent: Intent,
    state: State,
    failure: Failure,
    reason: str,
    node_id: str,
    detail: dict[str, Any] | None = None,
) -> list[Moved]:
    """The same for one, and for what waits for an agent that goes with its creation. Nothing: not pending."""
    moved = finish_pending(tx, [intent], state, failure, reason, node_id, detail)
    gone = intent.op is Op.CREATE and not any(_may_have_happened(ended.error) for ended, _ in moved)
    return [*moved, *(drop_held(tx, moved[0][0], node_id) if moved and gone else ())]


def poison(tx: Tx, intent: Intent, node_id: str) -> Moved | None:
    """It is not sent a fourth time. A start that may have half happened leaves its agent in `error`."""
    lane = home_of(intent.op).lane
    found = _ended(tx, lane, [intent.id], intent.state, intent.attempts, State.FAILED, POISON)
    if not found:
        return None
    [ended] = found
    if ended.op in STARTS:
        tx.run(_MARK, which=[ended.agent_id], said=POISON.message)
    return ended, step(tx, ended, intent.state, "poison", node_id, attempt=intent.attempts)


def _ended(
    tx: Tx, lane: Lane, these: Sequence[str], came_from: State, tried: int, state: State, failure: Failure
) -> list[Intent]:
    return tx.all(_FINISH[lane], these=these, came_from=came_from, tried=tried, to=state, failure=failure)


def _creations_ended(tx: Tx, agent_ids: Sequence[str], failure: Failure) -> None:
    if not agent_ids:
        return
    if _may_have_happened(failure):
        tx.run(_MARK, which=agent_ids, said=failure.message)
    else:
        tx.run(_REMOVE, which=agent_ids)


def _may_have_happened(failure: Failure | None) -> bool:
    return failure is not None and failure.code == OutcomeUnknown.code
