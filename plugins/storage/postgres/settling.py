"""Ends that come at the same time are written in one statement and one commit, each fenced for itself: the outcome,
what it makes of the agent, and the history. LOCAL calls are stored with theirs in the same manner.

What was refused, and an end that removes its agent's row, is left to the ledger's function.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kernel import (
    ACCEPTED,
    ROUTED,
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
from plugins.storage.postgres.claiming import next_step, with_last_step
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.durability import mode
from plugins.storage.postgres.given import PLACE, Statement, instant, listed, packed, row, rows
from plugins.storage.postgres.recording import STEP, columns_of, created, deadline, given_for, row_of, step
from plugins.storage.schema import SEQUENCE, Count, Flag, Id, Json, Text, agents, dump, runtime_brokers, transitions

OUTCOME = {
    "epoch": Count,
    "attempt": sa.Integer,
    "owner": Id,
    "to_state": Text,
    "reason": Text,
    "result": Json,
    "error": Json,
    "sent": Count,
    "took": Count,
    "failures": sa.Integer,
    "of_agent": Id,
}
"""What an end says of its intent, as columns."""
ENDED = OUTCOME | {"changes": Flag, **{f"to_{name}": kind for name, kind in CHANGE.items()}}
"""And of its agent."""


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


def _ending(home: Home, *, alone: bool, changes: bool) -> Any:
    """`alone`: of one end; `changes`: some may change their agents."""
    given = (row if alone else rows)("given", id=Id, **(ENDED if changes else OUTCOME))
    c = home.c
    ended = (
        home.change(
            state=given.c.to_state,
            result=given.c.result,
            error=given.c.error,
            sent_at=sa.func.coalesce(c.sent_at, instant(given.c.sent)),
            accepted_at=sa.func.coalesce(c.accepted_at, instant(given.c.took)),
            failures=c.failures + given.c.failures,
            ended_at=NOW,
            sealed=sa.null(),
            next_attempt_at=sa.null(),
        )
        .where(
            c.id == given.c.id,
            *(() if alone else (within(c.id, sa.select(given.c.id)),)),
            home.state == State.IN_PROGRESS,  # as an argument: the short index of all that is in hand is no way in
            c.claimed_epoch == given.c.epoch,
            c.attempts == given.c.attempt,
        )
        .returning(
            c.id,
            c.broker_id,
            home.state.label("state"),
            c.claimed_epoch,
            c.attempts,
            packed(home.shape.columns).label("intent"),
            *(given.c[name].label(name) for name in (PLACE, "reason", "owner", "of_agent")),
        )
        .cte("ended")
    )
    done = with_last_step(ended)
    told = next_step(done, IN_PROGRESS, done.c.state, done.c.reason, done.c.owner, done.c.claimed_epoch)
    after = _agents_after(given, done) if changes else None
    return _answer(done, after, done.c.step, done.c.since).add_cte(told)


def _agents_after(given: Any, done: Any, *when: Any) -> Any:
    """The agents that what is done changes, as they are after it."""
    return (
        sa.update(agents)
        .values(changed(lambda name: given.c[f"to_{name}"]))
        .where(agents.c.id == given.c.of_agent, given.c.changes, done.c[PLACE] == given.c[PLACE], *when)
        .returning(done.c[PLACE].label(PLACE), packed(AGENT.columns).label("agent"))
        .cte("after")
    )


def _answer(done: Any, after: Any, *more: Any) -> Any:
    """For each end that was written: its place, now, what waits behind it, its agent, its intent, and more."""
    before = agents.alias("before")
    unchanged = [before.c[column.element.name] for column in AGENT.columns]
    agent: Any = sa.select(packed(unchanged)).where(before.c.id == done.c.of_agent).scalar_subquery()
    joined: Any = done.join(sa.select(mode()).subquery("moded"), sa.true())
    if after is not None:
        agent = sa.case((after.c[PLACE].is_not(None), after.c.agent), else_=agent)
        joined = joined.outerjoin(after, after.c[PLACE] == done.c[PLACE])
    waits = [pending(home, done.c.broker_id, done.c.of_agent) for home in (CONTROL, MESSAGES)]
    return sa.select(done.c[PLACE], NOW, *waits, agent, done.c.intent, *more).select_from(joined)


_BEFORE = 6
"""Columns before those that differ: the place, now, whether control work waits, whether messages do, agent, intent."""
_END = {
    (home.lane, alone, changes): Statement(partial(_ending, home, alone=alone, changes=changes))
    for home in HOMES
    for alone in (False, True)
    for changes in (False, True)
}


async def end(connection: Connection, ends: Sequence[End]) -> list[Settled | None]:
    """All of one table. None: its row was in other hands, or ended, or its agent changes by another end already; the
    ledger's function knows what to do."""
    home = home_of(ends[0].op)
    told = [{PLACE: n, "id": one.intent_id, **_told(one)} for n, one in _one_an_agent(ends)]
    statement = _END[home.lane, len(told) == 1, any(one.change for one in ends)]
    given = told[0] if len(told) == 1 else {"given": listed(told)}
    at = told[0][PLACE] if len(told) == 1 else 0
    outcome: list[Settled | None] = [None] * len(ends)
    for found in await statement.rows(connection, **given, lazily=all(one.lazily for one in ends)):
        place = at + found[0]
        intent = home.shape.read(found[5])
        n, since = found[_BEFORE:]
        outcome[place] = _settled(found, intent, (_step(intent, ends[place], n or 0, since, found[1]),))
    return outcome


def _settled(found: Any, intent: Intent, steps: Sequence[Transition]) -> Settled:
    control, message, told = found[2:5]
    agent = None if told is None else AGENT.read(told)
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


def _born(home: Home, given: Any) -> Any:
    """Rows that begin as they ended."""
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
    return (
        postgresql.insert(home.table)
        .from_select(names, sa.select(*values).order_by(given.c.n))
        .on_conflict_do_nothing(index_elements=[home.c.id])
        .returning(
            home.c.id,
            home.c.broker_id,
            home.state.label("state"),
            home.created.label("created_at"),
            home.c.sent_at,
            packed(home.shape.columns).label("intent"),
        )
        .cte("born")
    )


def _storing(home: Home) -> Any:
    given = given_for(home, session=Id, **ENDED)
    born = _born(home, given)
    carried = _carried(given)
    current = sa.select(carried.c.epoch).where(carried.c.id == given.c.broker_id).scalar_subquery() == given.c.epoch
    done = (
        sa.select(given.c[PLACE], given.c.of_agent, current.label("current"), *born.c)
        .select_from(sa.join(born, given, born.c.id == given.c.id))
        .cte("done")
    )
    after = _agents_after(given, done, done.c.current)
    told = sa.insert(transitions).from_select([*STEP, "epoch", "attempt"], _history(given, done)).cte("told")
    return _answer(done, after, done.c.current).add_cte(told)


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
    joined = sa.join(done, given, done.c[PLACE] == given.c[PLACE])
    return sa.union_all(*(sa.select(done.c.id, *one).select_from(joined) for one in steps))


_STORE = {home.lane: Statement(partial(_storing, home)) for home in HOMES}


async def store(connection: Connection, calls: Sequence[tuple[NewIntent, End]]) -> list[Settled | None]:
    """All of one table. None: it has a row already, or its agent changes by another end already."""
    home = home_of(calls[0][0].op)
    changes = _one_an_agent([ended for _, ended in calls])
    told = [{PLACE: n, **row_of(calls[n][0], home), **_told(ended)} for n, ended in changes]
    outcome: list[Settled | None] = [None] * len(calls)
    for found in await _STORE[home.lane].rows(connection, given=listed(told), lazily=False):
        new, ended = calls[found[0]]
        intent = home.shape.read(found[5])
        steps = ended_early(intent, new.advice, ended.reason, found[1], current=found[_BEFORE])
        outcome[found[0]] = _settled(found, intent, steps)
    return outcome
