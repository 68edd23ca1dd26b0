"""Finds intents: by id, in lists, and what explains why one waits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from kernel import Agent, Intent, IntentFilter, IntentId, LaneView, Op, Page, State, Unfinished, is_uuid
from plugins.storage.ledger.history import history
from plugins.storage.ledger.homes import CONTROL, HOMES, IN_PROGRESS, MESSAGES, Home, home_of
from plugins.storage.ledger.pages import beyond, edge
from plugins.storage.ledger.query import Query, Tx, ago, among, first, param
from plugins.storage.ledger.rows import AGENT, BROKER, NODE
from plugins.storage.schema import Instant, Text, agents, hub_nodes, runtime_brokers

STUCK = 300 * 1_000_000
"""Microseconds after which a message that waits is counted as stuck."""

_FIND = {
    home.lane: Query[Intent](home.select().where(among(home.c.id, "ids"), home.is_intent), home.shape.read)
    for home in HOMES
}


def find_intents(tx: Tx, ids: Sequence[str]) -> list[Intent]:
    """In the order of `ids`; what is no id, or names nothing, is left out."""
    wanted = [intent_id.lower() for intent_id in ids if is_uuid(intent_id)]
    if not wanted:
        return []
    found = {intent.id: intent for home in HOMES for intent in tx.all(_FIND[home.lane], ids=wanted)}
    return [found[IntentId(intent_id)] for intent_id in dict.fromkeys(wanted) if intent_id in found]


def followed(home: Home) -> Any:
    """Intents, each with its agent."""
    both = home.table.outerjoin(agents, agents.c.id == home.agent)
    return sa.select(*home.shape.columns, *AGENT.columns).select_from(both).where(home.is_intent)


_FOLLOW = {home.lane: Query(followed(home).where(among(home.c.id, "ids")), home.with_agent) for home in HOMES}


def follow(tx: Tx, ids: Sequence[str]) -> list[tuple[Intent, Agent | None]]:
    """As `find_intents`, with the agents as they are now."""
    wanted = list(dict.fromkeys(intent_id.lower() for intent_id in ids if is_uuid(intent_id)))
    if not wanted:
        return []
    rows = [row for home in HOMES for row in tx.all(_FOLLOW[home.lane], ids=wanted)]
    found = {row[0].id: row for row in rows}
    return [found[IntentId(intent_id)] for intent_id in wanted if intent_id in found]


def find_intent(tx: Tx, intent_id: str) -> Intent | None:
    found = find_intents(tx, [intent_id])
    return found[0] if found else None


# -- lists --------------------------------------------------------------------------------------------------

_SET_ASIDE = frozenset({State.FAILED, State.EXPIRED, State.CANCELLED})
_UNFINISHED = frozenset({State.PENDING, State.IN_PROGRESS})


def list_intents(tx: Tx, where: IntentFilter, page: Page) -> list[Intent]:
    """One more than the page holds, newest first; both tables are read and merged."""
    found: list[Intent] = []
    for home in _homes(where):
        query = _listing(home.lane, _given(where), where.state, page.after is not None)
        found += tx.all(query, take=page.limit + 1, **_values(where), **edge(page))
    found.sort(key=lambda intent: (intent.created_at, intent.id), reverse=True)
    return found[: page.limit + 1]


def count_intents(tx: Tx, where: IntentFilter) -> int:
    return sum(tx.one(_count(home.lane, _given(where), where.state), **_values(where)) or 0 for home in _homes(where))


def _homes(where: IntentFilter) -> tuple[Home, ...]:
    ids = (where.agent_id, where.broker_id, where.project_id, where.group_id)
    if any(given is not None and not is_uuid(given) for given in ids):
        return ()
    homes = HOMES if where.op is None else (home_of(where.op),)
    return homes if where.group_id is None else tuple(home for home in homes if home is MESSAGES)


def _given(where: IntentFilter) -> frozenset[str]:
    return frozenset(_values(where))


def _values(where: IntentFilter) -> dict[str, Any]:
    ids = {name: getattr(where, name) for name in ("agent_id", "broker_id", "project_id", "group_id")}
    values: dict[str, Any] = {f"of_{name}": given.lower() for name, given in ids.items() if given is not None}
    if where.op is not None and where.op is not Op.MESSAGE:
        values["of_op"] = where.op
    return values


def _terms(home: Home, given: frozenset[str], state: State | None) -> list[Any]:
    """The conditions of a list; the state is written out, so that the partial indexes are found."""
    columns = {
        "of_agent_id": home.agent,
        "of_broker_id": home.c.broker_id,
        "of_project_id": home.c.project_id,
        "of_op": home.op,
    }
    if home is MESSAGES:
        columns["of_group_id"] = home.c.group_id
    terms: list[Any] = [columns[name] == param(name) for name in sorted(given)]
    terms.append(home.is_intent)
    if state is not None:
        terms.append(home.state == sa.literal_column(f"'{state.value}'", Text()))
    if state in _UNFINISHED:
        terms.append(home.unfinished())
    if state in _SET_ASIDE and "of_group_id" not in given:
        terms.append(sa.text(f"{home.state.name} IN ('failed', 'expired', 'cancelled')"))
    return terms


@cache
def _listing(lane: str, given: frozenset[str], state: State | None, onward: bool) -> Query[Intent]:
    home = CONTROL if lane == CONTROL.lane else MESSAGES
    terms = _terms(home, given, state)
    if onward:
        terms.append(beyond(home.created, home.c.id))
    statement = home.select().where(*terms).order_by(home.created.desc(), home.c.id.desc()).limit(param("take"))
    return Query(statement, home.shape.read)


@cache
def _count(lane: str, given: frozenset[str], state: State | None) -> Query[int]:
    home = CONTROL if lane == CONTROL.lane else MESSAGES
    return Query(sa.select(sa.func.count()).select_from(home.table).where(*_terms(home, given, state)), first)


# -- why one waits ------------------------------------------------------------------------------------------

_BEHIND = {
    home.lane: Query[Intent](
        home.select()
        .where(
            home.c.broker_id == param("broker"),
            home.agent == param("agent"),
            home.unfinished(),
            home.c.seq < param("before"),
        )
        .order_by(home.c.seq.desc())
        .limit(1),
        home.shape.read,
    )
    for home in HOMES
}
_AGENT = Query(sa.select(*AGENT.columns).where(agents.c.id == param("which")), AGENT.read)
_BROKER = Query(
    sa.select(*BROKER.columns).where(runtime_brokers.c.id == param("which"), runtime_brokers.c.deleted_at.is_(None)),
    BROKER.read,
)
_NODE = Query(sa.select(*NODE.columns).where(hub_nodes.c.id == param("which")), NODE.read)
_IN_FLIGHT = [
    Query[int](
        sa.select(sa.func.count())
        .select_from(home.table)
        .where(home.c.broker_id == param("broker"), home.state == IN_PROGRESS),
        first,
    )
    for home in HOMES
]
_ALIVE = Query[int](
    sa.select(sa.literal_column("1")).where(
        hub_nodes.c.id == param("which"),
        hub_nodes.c.lost_at.is_(None),
        hub_nodes.c.beat_at >= ago("lost_after"),
    ),
    first,
)


def explain(tx: Tx, intent_id: str) -> LaneView | None:
    intent = find_intent(tx, intent_id)
    if intent is None:
        return None
    broker = tx.one(_BROKER, which=intent.broker_id)
    owner = intent.claimed_by if intent.state is State.IN_PROGRESS else broker and broker.connected_hub_id
    behind = None
    if intent.unfinished:
        lane = home_of(intent.op).lane
        behind = tx.one(_BEHIND[lane], broker=intent.broker_id, agent=intent.agent_id, before=intent.seq)
    return LaneView(
        intent=intent,
        agent=tx.one(_AGENT, which=intent.agent_id),
        broker=broker,
        behind=behind,
        owner_alive=owner is not None and tx.one(_ALIVE, which=owner) is not None,
        history=history(tx, intent.id, intent.op),
        owner=tx.one(_NODE, which=owner) if owner else None,
        in_flight=sum(tx.one(query, broker=intent.broker_id) or 0 for query in _IN_FLIGHT),
        now=tx.now,
    )


# -- levels -------------------------------------------------------------------------------------------------

_LEVELS = {
    home.lane: Query[tuple[str, str, int]](
        sa.select(home.op, home.state, sa.func.count())
        .where(home.unfinished())
        .group_by(*((home.c.op,) if "op" in home.c else ()), home.state)
    )
    for home in HOMES
}
# `coalesce`: without it the index of all messages by time is taken, and history is walked.
_STUCK = Query[int](
    sa.select(sa.func.count())
    .select_from(MESSAGES.table)
    .where(
        MESSAGES.unfinished(),
        MESSAGES.state == State.PENDING,
        sa.func.coalesce(MESSAGES.created, MESSAGES.created) <= param("since", Instant()),
    ),
    first,
)


def unfinished(tx: Tx) -> Unfinished:
    rows = [row for home in HOMES for row in tx.all(_LEVELS[home.lane])]
    return Unfinished(
        counts={(Op.named(op), State(state)): count for op, state, count in rows},
        stuck_messages=tx.one(_STUCK, since=tx.now - STUCK) or 0,
    )
