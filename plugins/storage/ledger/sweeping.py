"""What sweeps and changes of owner move: back to pending, expired, poison. Bounded batches of compare-and-set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from kernel import BrokerOffline, BrokerTimeout, Changed, Failure, Intent, NodeId, State, Transition
from plugins.storage.ledger.claims import brokers_waiting
from plugins.storage.ledger.endings import AGENT_DELETED, finish_pending, finish_with_held, poison
from plugins.storage.ledger.eras import Unsure
from plugins.storage.ledger.history import steps
from plugins.storage.ledger.homes import CONTROL, HOMES, IN_PROGRESS, MESSAGES, Home, home_of
from plugins.storage.ledger.lookups import find_intents
from plugins.storage.ledger.query import NOW, Overtaken, Query, Tx, among, param
from plugins.storage.ledger.rows import NOBODY, held, last_held
from plugins.storage.schema import Instant, agents, runtime_brokers

POISON_AT = 3
"""Processes of a broker that died with an intent in flight, after which it is not sent again."""

_b = runtime_brokers.c


class Moves:
    """Collects what one transaction moved."""

    def __init__(self) -> None:
        self._intents: list[Intent] = []
        self._transitions: list[Transition] = []

    def add(self, moved: tuple[Intent, Transition] | None) -> None:
        if moved:
            self._intents.append(moved[0])
            self._transitions.append(moved[1])

    def changed(self) -> Changed:
        return Changed(intents=tuple(self._intents), transitions=tuple(self._transitions))


# -- back to pending ----------------------------------------------------------------------------------------


def _hand_back(home: Home) -> Query[Intent]:
    """`claimed_epoch` and `sent_at` stay: the next claim of the session counts crashes by them. What was taken anew
    meanwhile is in the hands of another session."""
    statement = home.update(state=State.PENDING, claimed_by=None, claimed_session=None, next_attempt_at=None).where(
        among(home.c.id, "these"), home.state == IN_PROGRESS, among(home.c.claimed_session, "sessions")
    )
    return Query(statement, home.shape.read)


_HAND_BACK = {home.lane: _hand_back(home) for home in HOMES}


def hand_back(tx: Tx, intents: Sequence[Intent], reason: str, by: str | None, moves: Moves) -> None:
    """However many, in a few statements. `by` whom; None: by those who had them."""
    moved: list[tuple[Intent, Intent]] = []
    for home in HOMES:
        mine = {intent.id: intent for intent in intents if home_of(intent.op) is home}
        if mine:
            sessions = sorted({intent.claimed_session or NOBODY for intent in mine.values()})
            back = tx.all(_HAND_BACK[home.lane], these=list(mine), sessions=sessions)
            moved += [(mine[after.id], after) for after in sorted(back, key=lambda intent: intent.seq)]
    told = steps(tx, moved, reason, lambda before: by or before.claimed_by or before.node_id)
    for (_, after), transition in zip(moved, told, strict=True):
        moves.add((after, transition))


def give_back(tx: Tx, taken: Iterable[Intent]) -> None:
    """Claims of which their node never heard."""
    hand_back(tx, list(taken), "unheard", None, Moves())


def _in_hand(home: Home) -> Query[Intent]:
    return Query(
        home.select().where(among(home.c.broker_id, "brokers"), home.state == IN_PROGRESS).order_by(home.c.seq + 0),
        home.shape.read,
    )


_IN_HAND = [_in_hand(home) for home in HOMES]


def in_hand(tx: Tx, *broker_ids: str) -> list[Intent]:
    """What anybody holds of these brokers."""
    return [intent for query in _IN_HAND for intent in tx.all(query, brokers=list(broker_ids))]


def _orphans(home: Home) -> Query[Intent]:
    """In hand under a session that its broker's row no longer carries."""
    carries = (
        sa.select(sa.literal_column("1"))
        .where(
            _b.id == home.c.broker_id,
            _b.connected_session_id == home.c.claimed_session,
        )
        .correlate(home.table)
        .exists()
    )
    return Query(home.select().where(home.state == IN_PROGRESS, sa.not_(carries)).limit(param("take")), home.shape.read)


_ORPHANS = [_orphans(home) for home in HOMES]


def redrive(tx: Tx, node_id: NodeId, limit: int) -> Changed:
    moves = Moves()
    if not tx.elect("redrive"):
        return moves.changed()
    found: list[Intent] = []
    for query in _ORPHANS:
        if len(found) < limit:
            found += tx.all(query, take=limit - len(found))
    hand_back(tx, found, "owner_lost", node_id, moves)
    forlorn = tx.all(_FORLORN, take=limit - len(found)) if len(found) < limit else []
    for moved in finish_pending(tx, forlorn, State.CANCELLED, AGENT_DELETED, "agent_deleted", node_id):
        moves.add(moved)
    return moves.changed()


# A value for each message, looked up by key: no join that a planner could begin with at its wrong end.
_agent_lives = (
    sa.select(sa.case((agents.c.deleted_at.is_(None), 1), else_=0))
    .where(agents.c.id == MESSAGES.agent)
    .correlate(MESSAGES.table)
    .scalar_subquery()
)
_FORLORN = Query[Intent](
    MESSAGES.select()
    .where(MESSAGES.unfinished(), MESSAGES.state == State.PENDING, sa.func.coalesce(_agent_lives, 0) == 0)
    .limit(param("take")),
    MESSAGES.shape.read,
)
"""Messages that nobody can deliver any more: written while another hub deleted their agent, or too many to end with
it."""


# -- expired ------------------------------------------------------------------------------------------------


def expire(tx: Tx, ids: Sequence[str], failure: Failure, node_id: NodeId) -> Changed:
    moves = Moves()
    for intent in find_intents(tx, ids):
        ended = finish_with_held(tx, intent, State.EXPIRED, failure, "window", node_id)
        if not ended and intent.state is State.PENDING:
            raise Overtaken  # tried in between, and perhaps pending again: nobody may start it later
        for moved in ended:
            moves.add(moved)
    return moves.changed()


def _overdue(home: Home) -> Query[Intent]:
    return Query(
        home.select()
        .where(home.unfinished(), home.c.deadline_at <= NOW, home.state == State.PENDING)
        .order_by(home.c.deadline_at)
        .limit(param("take")),
        home.shape.read,
    )


_OVERDUE = [_overdue(home) for home in HOMES]


def expire_due(tx: Tx, node_id: NodeId, limit: int) -> Changed:
    """`pending` past the deadline: of one that never was claimed it is known that it did not happen."""
    if not tx.elect("expire_due"):
        return Changed()
    found: list[Intent] = []
    for query in _OVERDUE:
        if len(found) < limit:
            found += tx.all(query, take=limit - len(found))
    return _expire_all(tx, found, BrokerTimeout().as_failure(), "deadline", node_id)


_UNHELD = Query(
    CONTROL.select()
    .select_from(brokers_waiting(CONTROL))
    .join(runtime_brokers, sa.literal_column("brokers_control.broker") == _b.id)
    .join(CONTROL.table, CONTROL.c.broker_id == _b.id)
    .where(
        CONTROL.unfinished(),
        CONTROL.state == State.PENDING,
        CONTROL.c.attempts == 0,
        sa.not_(Unsure(CONTROL.c.seq)),
        sa.not_(CONTROL.c.hold),
        sa.func.coalesce(held, sa.false()) == sa.false(),
        sa.or_(last_held.is_(None), last_held <= param("gone_since", Instant())),
    )
    .limit(param("take")),
    CONTROL.shape.read,
)


def expire_unheld(tx: Tx, node_id: NodeId, grace: float, limit: int) -> Changed:
    """Nobody waits a whole window for a broker that is gone: it never was claimed, so it did not happen."""
    if not tx.elect("expire_unheld"):
        return Changed()
    found = tx.all(_UNHELD, gone_since=tx.now - int(grace * 1_000_000), take=limit)
    return _expire_all(tx, found, BrokerOffline().as_failure(), "nobody_home", node_id)


def _expire_all(tx: Tx, found: list[Intent], failure: Failure, reason: str, node_id: str) -> Changed:
    """In a few statements however many. What waits for the agent of an expired creation, `redrive` finds."""
    moves = Moves()
    for moved in finish_pending(tx, found, State.EXPIRED, failure, reason, node_id):
        moves.add(moved)
    return moves.changed()


# -- poison -------------------------------------------------------------------------------------------------


def _crash(home: Home) -> Query[Intent]:
    """What had been sent under this epoch and was not answered."""
    statement = home.update(broker_crashes=home.c.broker_crashes + 1).where(
        home.c.broker_id == param("broker"),
        home.unfinished(),
        home.c.claimed_epoch == param("epoch"),
        home.c.sent_at.is_not(None),
    )
    return Query(statement, home.shape.read)


_CRASH = [_crash(home) for home in HOMES]


def count_crash(tx: Tx, broker_id: str, epoch: int, node_id: str, moves: Moves) -> None:
    """The broker's process died under this epoch. The third that dies with an intent in flight is its last."""
    for query in _CRASH:
        for intent in tx.all(query, broker=broker_id, epoch=epoch):
            if intent.broker_crashes >= POISON_AT:
                moves.add(poison(tx, intent, node_id))


def _stamp(home: Home) -> Query[Any]:
    return Query(
        sa.update(home.table)
        .values(sent_at=NOW)
        .where(
            among(home.c.id, "ids"),
            home.unfinished(),
            home.c.claimed_epoch == param("epoch"),
            home.c.sent_at.is_(None),
        )
    )


STAMP_SENT = [_stamp(home) for home in HOMES]
