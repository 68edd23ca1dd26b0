"""Makes the rows of one session agree with what its node knows, after commits were undone or an answer was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from kernel import BrokerId, Held, Intent, IntentId, Known, NodeId, Op, Recovered, Session, State, Transition, is_uuid
from plugins.storage.ledger.claims import carried
from plugins.storage.ledger.history import step
from plugins.storage.ledger.homes import HOMES, IN_PROGRESS, Home, home_of
from plugins.storage.ledger.query import NOW, Query, Tx, among, first, param

# Alone with the row: a claim, which shares it, is over when this goes on, and what it took is seen.
_CARRIED = Query[int](carried(paused=True).with_for_update(), first)
_THERE = [Query[IntentId](sa.select(home.c.id).where(among(home.c.id, "ids")), first) for home in HOMES]
_UNFINISHED = [
    Query[Intent](home.select().where(among(home.c.id, "ids"), home.unfinished()), home.shape.read) for home in HOMES
]


def _take_again(home: Home) -> Query[Intent]:
    statement = home.update(
        state=IN_PROGRESS,
        attempts=param("attempt"),
        claimed_by=param("node"),
        claimed_epoch=param("epoch"),
        claimed_session=param("session"),
        claimed_at=sa.case((home.state == IN_PROGRESS, home.c.claimed_at), else_=NOW),
        next_attempt_at=None,
    ).where(home.c.id == param("which"), home.unfinished(), home.c.attempts < param("attempt"))
    return Query(statement, home.shape.read)


_TAKE_AGAIN = {home.lane: _take_again(home) for home in HOMES}


def _held(home: Home, *where: Any) -> Query[Held]:
    return Query(
        sa.select(home.c.id, home.op, home.c.broker_id, home.c.attempts).where(home.state == IN_PROGRESS, *where),
        lambda row: Held(intent_id=row[0], op=Op(row[1]), broker_id=BrokerId(row[2]), attempt=row[3]),
    )


_OF_SESSION = [
    _held(home, home.c.broker_id == param("broker"), home.c.claimed_session == param("session")) for home in HOMES
]
_OF_NODE = [_held(home, home.c.claimed_by == param("node")) for home in HOMES]


def in_hand(tx: Tx, node_id: NodeId) -> list[Held]:
    return [held for query in _OF_NODE for held in tx.all(query, node=node_id)]


def recover(tx: Tx, known: Known) -> Recovered:
    """A row of fewer attempts than its work has was claimed for it: no other way leads there but a lost commit."""
    session = known.session
    attempts = {held.intent_id: held.attempt for held in (*known.ended, *known.in_hand)}
    ids = [intent_id for intent_id in attempts if is_uuid(intent_id)]
    there = {intent_id for query in _THERE for intent_id in tx.all(query, ids=ids)}
    gone = tuple(intent_id for intent_id in attempts if intent_id not in there)
    if tx.one(_CARRIED, **_names(session)) is None:
        return Recovered(stale=True, gone=gone)
    steps: list[Transition] = []
    taken: list[Intent] = []
    unfinished = [intent for query in _UNFINISHED for intent in tx.all(query, ids=ids)]
    for intent in unfinished:
        again = _taken_again(tx, intent, session, attempts[intent.id])
        if again:
            taken.append(again)
            steps += _told(tx, intent, again, session)
    held = [one for query in _OF_SESSION for one in tx.all(query, broker=session.broker_id, session=session.session_id)]
    mine = {one.intent_id for one in held if attempts.get(one.intent_id) == one.attempt}
    return Recovered(
        taken=tuple(taken),
        unended=tuple(one.intent_id for one in known.ended if one.intent_id in mine),
        gone=gone,
        strangers=tuple(one for one in held if one.intent_id not in mine),
        transitions=tuple(steps),
    )


def _names(session: Session) -> dict[str, Any]:
    return {
        "broker": session.broker_id,
        "node": session.node_id,
        "session": session.session_id,
        "epoch": session.epoch,
    }


def _taken_again(tx: Tx, intent: Intent, session: Session, attempt: int) -> Intent | None:
    if not _free(intent, session):
        return None
    names = {"node": session.node_id, "session": session.session_id, "epoch": session.epoch}
    return tx.one(_TAKE_AGAIN[home_of(intent.op).lane], which=intent.id, attempt=attempt, **names)


def _free(intent: Intent, session: Session) -> bool:
    """Nobody else has it in hand."""
    return intent.state is State.PENDING or intent.claimed_session == session.session_id


def _told(tx: Tx, before: Intent, after: Intent, session: Session) -> Sequence[Transition]:
    """The step of an undone claim was undone with it."""
    if before.state is State.IN_PROGRESS:
        return ()
    again = step(tx, after, State.PENDING, "reclaimed", session.node_id, epoch=session.epoch, attempt=after.attempts)
    return (again,)
