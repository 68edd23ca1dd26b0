"""Calls that are accepted at the same time are recorded in one statement and one commit, each for itself.

What takes more than a row of its own (a new agent, many intents, starts that a stop supersedes, a key that was used
before) is not written here: the ledger's function does it, in a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kernel import ACCEPTED, ROUTED, STARTS, Intent, NewIntent, Op, Recorded, Recording, State
from plugins.storage.ledger.filling import OF_MESSAGE
from plugins.storage.ledger.history import early
from plugins.storage.ledger.homes import HOMES, MESSAGES, Home, home_of
from plugins.storage.ledger.query import NOW, ONE, any_of
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.given import Statement, instant, listed, row, rows, span
from plugins.storage.schema import SEQUENCE, Count, Flag, Json, Text, idempotency_keys, transitions

PLAIN = (
    "id", "broker_id", "agent_slug", "project_id", "route", "principal", "request_id", "node_id", "traceparent",
    "run_id", "requeued_from", "hold", "args",
)  # fmt: skip
"""Columns that are written as the call brought them."""


def simple(recording: Recording) -> bool:
    """Whether one row is all that it takes, but for a key and starts that are superseded if there are any."""
    (new, *more) = recording.intents or (None,)
    if new is None or more or recording.agent or recording.provider or recording.answer is not None:
        return False
    return not (new.claim or new.sealed or new.key or (new.op is Op.MESSAGE and new.message is None))


def columns_of(home: Home) -> tuple[str, ...]:
    """All columns of a row that its call fills."""
    return (*PLAIN, home.agent.name, *(OF_MESSAGE if home is MESSAGES else ("op", "lane")))


def row_of(new: NewIntent, home: Home) -> dict[str, Any]:
    """What its call fills them with, and the spans from which its instants are reckoned."""
    row = {name: getattr(new, name) for name in PLAIN}
    if new.message is not None:
        row |= {name: getattr(new.message, name) for name in OF_MESSAGE}
    else:
        row |= {"op": new.op, "lane": new.lane}
    return row | {
        home.agent.name: new.agent_id,
        "deadline_in": int(new.deadline_in * 1_000_000),
        "deadline_limit": new.deadline_at,
        "accepted_from": new.created_at,
        "advice": new.advice or None,
    }


def given_for(home: Home, form: Callable[..., Any] = rows, **more: Any) -> Any:
    """`form`: as `rows`, or as the one `row` of a call that comes alone."""
    plain = {name: home.table.c[name].type for name in columns_of(home)}
    return form("given", **plain, deadline_in=Count, deadline_limit=Count, accepted_from=Count, advice=Json, **more)


def created(given: Any) -> Any:
    return sa.func.coalesce(instant(given.c.accepted_from), NOW)


def deadline(given: Any) -> Any:
    return sa.func.least(NOW + span(given.c.deadline_in), instant(given.c.deadline_limit))


def step(n: int, came_from: str, to: Any, reason: Any, node: Any, at: Any, detail: Any = None) -> list[Any]:
    """One row of the history, in the order of `STEP`."""
    texts = [part if isinstance(part, sa.ColumnElement) else sa.literal_column(f"'{part}'") for part in (to, reason)]
    no_detail = sa.cast(sa.null(), postgresql.JSONB())
    return [
        sa.literal_column(str(n)), at, sa.literal_column(f"'{came_from}'"), *texts, node,
        no_detail if detail is None else detail,
    ]  # fmt: skip


STEP = ["intent_id", "n", "at", "from_state", "to_state", "reason", "node_id", "detail"]


def _plain(home: Home, form: Callable[..., Any]) -> Any:
    """Of calls that have no key and supersede nothing."""
    given = given_for(home, form)
    return _written(home, given, given)


def _any(home: Home) -> Any:
    given = given_for(home, key_of=Text, key=Text, request_hash=Text, supersedes=Flag)
    fit = sa.select(given).where(sa.not_(sa.and_(given.c.supersedes, _starts(home, given)))).cte("fit")
    return _written(home, given, _with_free_keys(fit))


def _written(home: Home, given: Any, free: Any) -> Any:
    """The rows and the first steps of those that are `free` to be written."""
    names = [*columns_of(home), home.state.name, "seq", "deadline_at", home.created.name]
    values = [
        *(free.c[name] for name in columns_of(home)),
        sa.literal_column(f"'{State.PENDING}'"),
        sa.literal_column(f"nextval('{SEQUENCE}')"),
        deadline(free),
        created(free),
    ]
    born = (
        postgresql.insert(home.table)
        .from_select(names, sa.select(*values).order_by(free.c.n))
        .on_conflict_do_nothing(index_elements=[home.c.id])
        .returning(home.c.id, home.c.seq, home.created.label("created_at"), home.c.deadline_at)
        .cte("born")
    )
    joined = sa.join(born, given, born.c.id == given.c.id)
    first = step(1, ACCEPTED, ROUTED, given.c.route, given.c.node_id, born.c.created_at, given.c.advice)
    second = step(2, ROUTED, State.PENDING, "recorded", given.c.node_id, NOW)
    both = sa.union_all(*(sa.select(born.c.id, *one).select_from(joined) for one in (first, second)))
    told = sa.insert(transitions).from_select(STEP, both).cte("told")
    answer = sa.select(given.c.n, born.c.seq, born.c.created_at, born.c.deadline_at, NOW).select_from(joined)
    return answer.add_cte(told)


def _starts(home: Home, given: Any) -> Any:
    """Something is pending that this call would supersede."""
    if home is MESSAGES:
        return sa.false()
    starts = home.table.alias("starts")
    found = sa.select(ONE).where(
        starts.c.broker_id == given.c.broker_id,
        starts.c.agent_id == given.c.agent_id,
        home.unfinished(starts),
        starts.c.state == sa.literal_column(f"'{State.PENDING}'"),
        starts.c.attempts == 0,
        sa.or_(*(starts.c.op == sa.literal_column(f"'{op}'") for op in sorted(STARTS))),
    )
    return any_of(found).is_not(None)


def _with_free_keys(fit: Any) -> Any:
    """Those without a key, and those whose key nobody used before."""
    kept = (
        postgresql.insert(idempotency_keys)
        .from_select(
            ["principal", "key", "request_hash", "intent_id", "created"],
            sa.select(fit.c.key_of, fit.c.key, fit.c.request_hash, fit.c.id, NOW).where(fit.c.key.is_not(None)),
        )
        .on_conflict_do_nothing(index_elements=[idempotency_keys.c.principal, idempotency_keys.c.key])
        .returning(idempotency_keys.c.intent_id)
        .cte("kept")
    )
    mine = sa.select(sa.literal_column("1")).where(kept.c.intent_id == fit.c.id).exists()
    free = sa.select(fit).where(sa.or_(fit.c.key.is_(None), mine))
    return free.cte("free").prefix_with("MATERIALIZED")


_ANY = {home.lane: Statement(partial(_any, home)) for home in HOMES}
_PLAIN = {home.lane: Statement(partial(_plain, home, rows)) for home in HOMES}
_ALONE = {home.lane: Statement(partial(_plain, home, row)) for home in HOMES}


async def record(connection: Connection, recordings: Sequence[Recording]) -> list[Recorded | None]:
    """All of one table. None: its place is taken, by a key or an id that was used before, or by starts that it
    supersedes: the ledger's function knows what to do."""
    home = home_of(recordings[0].intents[0].op)
    outcome: list[Recorded | None] = [None] * len(recordings)
    for n, seq, created_at, deadline_at, now in await _rows(connection, recordings, home):
        new = recordings[n].intents[0]
        intent = _intent(new, seq=seq, created_at=created_at, deadline_at=deadline_at)
        steps = (
            early(intent, 1, ACCEPTED, ROUTED, intent.route, created_at, new.advice),
            early(intent, 2, ROUTED, State.PENDING, "recorded", now),
        )
        outcome[n] = Recorded(intents=(intent,), transitions=steps)
    return outcome


async def _rows(connection: Connection, recordings: Sequence[Recording], home: Home) -> list[Any]:
    if any(one.key or one.supersedes_starts for one in recordings):
        return await _ANY[home.lane].rows(connection, given=listed([_told(one, home) for one in recordings]))
    told = [row_of(one.intents[0], home) for one in recordings]
    if len(told) == 1:
        return await _ALONE[home.lane].rows(connection, **told[0])
    return await _PLAIN[home.lane].rows(connection, given=listed(told))


def _told(recording: Recording, home: Home) -> dict[str, Any]:
    key = recording.key
    return row_of(recording.intents[0], home) | {
        "key_of": key and key.principal,
        "key": key and key.key,
        "request_hash": key and key.request_hash,
        "supersedes": recording.supersedes_starts,
    }


_OF_INTENT = frozenset(Intent.__struct_fields__) & frozenset(NewIntent.__struct_fields__)


def _intent(new: NewIntent, **more: Any) -> Intent:
    """The row as it was written, without reading it back."""
    same = {name: getattr(new, name) for name in _OF_INTENT}
    return Intent(**(same | {"state": State.PENDING} | more))
