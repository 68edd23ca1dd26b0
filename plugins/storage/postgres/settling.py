"""Ends that come at the same time are written in one statement and one commit, each fenced for itself: the outcome,
what it makes of the agent, and the history. LOCAL calls are stored with theirs in the same manner.

What was refused, and an end that removes its agent's row, is left to the ledger's function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kernel import (
    ACCEPTED,
    ROUTED,
    Agent,
    AgentChange,
    End,
    Intent,
    NewIntent,
    Phase,
    Settled,
    State,
    Transition,
    is_uuid,
)
from plugins.storage.ledger.agents import CHANGE, changed, told_of
from plugins.storage.ledger.ends import pending
from plugins.storage.ledger.history import LEFT_TO_REPORT, ended_early
from plugins.storage.ledger.homes import CONTROL, HOMES, IN_PROGRESS, MESSAGES, Home, home_of
from plugins.storage.ledger.query import NOW, within
from plugins.storage.ledger.rows import AGENT
from plugins.storage.postgres.claiming import last_step
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.durability import mode
from plugins.storage.postgres.given import PLACE, Statement, instant, listed, rows
from plugins.storage.postgres.recording import STEP, columns_of, created, deadline, given_for, row_of, step
from plugins.storage.schema import SEQUENCE, Count, Flag, Id, Json, Text, agents, dump, runtime_brokers, transitions

ENDED = {
    "epoch": Count,
    "attempt": sa.Integer,
    "session": Id,
    "owner": Id,
    "to_state": Text,
    "reason": Text,
    "result": Json,
    "error": Json,
    "sent": Count,
    "took": Count,
    "failures": sa.Integer,
    "of_agent": Id,
    "changes": Flag,
    **{f"to_{name}": kind for name, kind in CHANGE.items()},
}
"""What an end says, as columns."""


def plain(end: End) -> bool:
    """Whether its agent keeps its row, and its outcome has nothing else to end. What is no id would fail its batch."""
    return is_uuid(end.intent_id) and (end.change is None or end.change.removal is None)


def _told(end: End) -> dict[str, Any]:
    change = end.change or AgentChange()
    return {
        "epoch": end.session.epoch,
        "attempt": end.attempt,
        "session": end.session.session_id,
        "owner": end.session.node_id,
        "to_state": end.state,
        "reason": end.reason,
        "result": end.result,
        "error": end.error,
        "sent": end.sent_at,
        "took": end.accepted_at,
        "failures": end.failures,
        "of_agent": end.agent_id,
        "changes": end.change is not None,
        **{f"to_{name}": value for name, value in told_of(change).items()},
    }


def _one_an_agent(ends: Sequence[End]) -> list[tuple[int, End]]:
    """With their places: one statement changes a row once, so of those that change one agent the first is written."""
    firsts: dict[str, int] = {}
    for n, one in enumerate(ends):
        if one.change is not None:
            firsts.setdefault(one.agent_id, n)
    return [(n, one) for n, one in enumerate(ends) if one.change is None or firsts[one.agent_id] == n]


# -- an end of recorded work ------------------------------------------------------------------------------------


def _ending(home: Home) -> Any:
    given = rows("given", id=Id, **ENDED)
    c = home.c
    ended = (
        home.update(
            state=given.c.to_state,
            result=given.c.result,
            error=given.c.error,
            sent_at=sa.func.coalesce(c.sent_at, instant(given.c.sent)),
            accepted_at=sa.func.coalesce(c.accepted_at, instant(given.c.took)),
            failures=c.failures + given.c.failures,
            ended_at=NOW,
            sealed=None,
            next_attempt_at=None,
        )
        .where(
            c.id == given.c.id,
            within(c.id, sa.select(given.c.id)),
            home.state == IN_PROGRESS,
            c.claimed_epoch == given.c.epoch,
            c.attempts == given.c.attempt,
        )
        .returning(given.c.n.label("place"), given.c.reason.label("because"), given.c.owner.label("by_node"))
        .cte("ended")
    )
    n, at = last_step(ended.c.id)
    told = sa.insert(transitions).from_select(
        ["intent_id", "n", "at", "from_state", "to_state", "reason", "node_id", "epoch", "attempt"],
        sa.select(
            ended.c.id, sa.func.coalesce(n, 0) + 1, NOW, IN_PROGRESS, ended.c.state, ended.c.because,
            ended.c.by_node, ended.c.claimed_epoch, ended.c.attempts,
        ),
    )  # fmt: skip
    after = _agents_after(given, sa.select(ended.c.place).where(ended.c.place == given.c.n).exists())
    intent = [ended.c[name] for name in _names(home)]
    return _answer(given, after, ended, [n, at, *intent]).add_cte(told.cte("told"))


def _names(home: Home) -> list[str]:
    return [column.name for column in home.shape.columns]


def _agents_after(given: Any, when: Any) -> Any:
    """The agents that these ends change, as they are after it."""
    return (
        sa.update(agents)
        .values(changed(lambda name: given.c[f"to_{name}"]))
        .where(agents.c.id == given.c.of_agent, given.c.changes, when)
        .returning(given.c.n.label("place"), *AGENT.columns)
        .cte("after")
    )


def _answer(given: Any, after: Any, done: Any, columns: list[Any]) -> Any:
    """For each end that was written: the columns of its intent, its agent, and what waits behind it."""
    before = agents.alias("before")
    unchanged = [before.c[column.element.name] for column in AGENT.columns]
    is_changed = after.c.place.is_not(None)
    agent = [
        sa.case((is_changed, after.c[column.name]), else_=old)
        for column, old in zip(AGENT.columns, unchanged, strict=True)
    ]
    broker, who = done.c.broker_id, given.c.of_agent
    joined = (
        sa.join(given, done, done.c.place == given.c.n)
        .outerjoin(after, after.c.place == given.c.n)
        .outerjoin(before, before.c.id == given.c.of_agent)
        .join(sa.select(mode()).subquery("moded"), sa.true())
    )
    waits = [pending(home, broker, who) for home in (CONTROL, MESSAGES)]
    return sa.select(given.c.n, NOW, *waits, *agent, *columns).select_from(joined)


_BEFORE = 4
"""Columns before those of the agent: the place, now, whether control work waits, whether messages do."""
_END = {home.lane: Statement(lambda home=home: _ending(home)) for home in HOMES}  # type: ignore[misc]


async def end(connection: Connection, ends: Sequence[End]) -> list[Settled | None]:
    """All of one table. None: its row was in other hands, or ended, or its agent changes by another end already; the
    ledger's function knows what to do."""
    home = home_of(ends[0].op)
    told = [{PLACE: n, "id": one.intent_id, **_told(one)} for n, one in _one_an_agent(ends)]
    lazily = all(one.lazily for one in ends)
    outcome: list[Settled | None] = [None] * len(ends)
    for row in await _END[home.lane].rows(connection, given=listed(told), lazily=lazily):
        agent = _agent(row)
        at = _BEFORE + len(AGENT)
        n, since = row[at : at + 2]
        intent = home.shape.read(row, at + 2)
        outcome[row[0]] = _settled(row, intent, agent, (_step(intent, ends[row[0]], n or 0, since, row[1]),))
    return outcome


def _agent(row: Any) -> Agent | None:
    return AGENT.read(row, _BEFORE) if row[_BEFORE] is not None else None


def _settled(row: Any, intent: Intent, agent: Agent | None, steps: Sequence[Transition]) -> Settled:
    control, message = row[2:4]
    runs = agent is not None and agent.phase is Phase.RUNNING and agent.deleted_at is None
    waiting = bool(control or (runs and message))
    return Settled(accepted=True, intent=intent, agent=agent, transitions=tuple(steps), waiting=waiting)


def _step(intent: Intent, end: End, n: int, since: int | None, now: int) -> Transition:
    return Transition(
        intent_id=intent.id,
        op=intent.op,
        n=n + 1,
        at=now,  # type: ignore[arg-type]
        from_state=State.IN_PROGRESS,
        to_state=intent.state,
        reason=end.reason,
        node_id=end.session.node_id,
        epoch=end.session.epoch,
        attempt=end.attempt,
        seconds=max(0, now - (since or intent.created_at)) / 1_000_000,
        detail={},
    )


# -- a LOCAL call and its end -----------------------------------------------------------------------------------


def _storing(home: Home) -> Any:
    given = given_for(home, **ENDED)
    names = [
        *columns_of(home), home.state.name, "seq", "deadline_at", home.created.name, "attempts", "failures",
        "claimed_by", "claimed_epoch", "claimed_session", "claimed_at", "sent_at", "accepted_at", "result", "error",
        "ended_at",
    ]  # fmt: skip
    values = [
        *(given.c[name] for name in columns_of(home)),
        given.c.to_state,
        sa.literal_column(f"nextval('{SEQUENCE}')"),
        deadline(given),
        created(given),
        given.c.attempt,
        given.c.failures,
        given.c.owner,
        given.c.epoch,
        given.c.session,
        created(given),
        instant(given.c.sent),
        instant(given.c.took),
        given.c.result,
        given.c.error,
        NOW,
    ]
    born = (
        postgresql.insert(home.table)
        .from_select(names, sa.select(*values).order_by(given.c.n))
        .on_conflict_do_nothing(index_elements=[home.c.id])
        .returning(*home.shape.columns)
        .cte("born")
    )
    carried = _carried(given)
    current = sa.select(carried.c.epoch).where(carried.c.id == given.c.broker_id).scalar_subquery() == given.c.epoch
    stored = sa.select(born.c.id).where(born.c.id == given.c.id).exists()
    done = (
        sa.select(given.c.n.label("place"), current.label("current"), *born.c)
        .select_from(sa.join(born, given, born.c.id == given.c.id))
        .cte("done")
    )
    after = _agents_after(given, sa.and_(stored, current))
    told = sa.insert(transitions).from_select([*STEP, "epoch", "attempt"], _history(given, done)).cte("told")
    intent = [done.c[name] for name in _names(home)]
    return _answer(given, after, done, [done.c.current, *intent]).add_cte(told)


def _carried(given: Any) -> Any:
    """The epochs of the brokers' rows, which are shared: whoever claims a session meanwhile waits until the agents are
    changed, or has claimed it first, and then they are left alone."""
    b = runtime_brokers.c
    shared = sa.select(b.id, b.connection_epoch.label("epoch")).where(within(b.id, sa.select(given.c.broker_id)))
    return shared.with_for_update(read=True).cte("carried").prefix_with("MATERIALIZED")


_LEFT = (dump(LEFT_TO_REPORT) or "").replace("'", "''")


def _history(given: Any, done: Any) -> Any:
    """accepted → routed → in_progress → its end, of which nothing was written before."""
    sent = sa.func.greatest(done.c.created_at, sa.func.least(sa.func.coalesce(done.c.sent_at, NOW), NOW))
    left = sa.case(
        (done.c.current, sa.cast(sa.null(), postgresql.JSONB())),
        else_=sa.cast(sa.literal_column(f"'{_LEFT}'"), postgresql.JSONB()),
    )
    nobody = [sa.cast(sa.null(), sa.BigInteger()), sa.cast(sa.null(), sa.Integer())]
    hands = [given.c.epoch, given.c.attempt]
    steps = [
        [*step(1, ACCEPTED, ROUTED, given.c.route, given.c.node_id, done.c.created_at, given.c.advice), *nobody],
        [*step(2, ROUTED, State.IN_PROGRESS, "in_hand", given.c.node_id, sent), *hands],
        [*step(3, State.IN_PROGRESS, done.c.state, given.c.reason, given.c.owner, NOW, left), *hands],
    ]
    joined = sa.join(done, given, done.c.place == given.c.n)
    return sa.union_all(*(sa.select(done.c.id, *one).select_from(joined) for one in steps))


_STORE = {home.lane: Statement(lambda home=home: _storing(home)) for home in HOMES}  # type: ignore[misc]


async def store(connection: Connection, calls: Sequence[tuple[NewIntent, End]]) -> list[Settled | None]:
    """All of one table. None: it has a row already, or its agent changes by another end already."""
    home = home_of(calls[0][0].op)
    changes = _one_an_agent([ended for _, ended in calls])
    told = [{PLACE: n, **row_of(calls[n][0], home), **_told(ended)} for n, ended in changes]
    outcome: list[Settled | None] = [None] * len(calls)
    for row in await _STORE[home.lane].rows(connection, given=listed(told), lazily=False):
        new, ended = calls[row[0]]
        at = _BEFORE + len(AGENT)
        intent = home.shape.read(row, at + 1)
        steps = ended_early(intent, new.advice, ended.reason, row[1], current=row[at])
        outcome[row[0]] = _settled(row, intent, _agent(row), steps)
    return outcome
