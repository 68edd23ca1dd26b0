"""A claim in one statement: the heads of a broker's lanes, control before messages, with their step in the history."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from kernel import ClaimRequest, Claims, Instant, Intent, Op, State, Transition
from plugins.storage.ledger.claims import arguments, carried, claiming
from plugins.storage.ledger.homes import HOMES, Home
from plugins.storage.ledger.query import NOW, ONE, param
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.durability import mode
from plugins.storage.postgres.given import Statement, packed
from plugins.storage.schema import runtime_brokers, transitions

CLAIMED = "claimed"


def _statement(homes: Sequence[Home], *, hinted: bool, room: bool) -> Any:
    """The broker's row is locked, shared, before anything is taken: whoever claims the session meanwhile waits, and
    then finds what was taken here. `room`: there is some for all of which a signal told."""
    holder = (
        carried(paused=True)
        .with_only_columns(runtime_brokers.c.paused)
        .with_for_update(read=True)
        .cte("holder")
        .prefix_with("MATERIALIZED")
    )
    carries = sa.select(ONE).select_from(holder).where(sa.not_(holder.c.paused)).exists()
    taken = with_last_step(_both(homes, carries, hinted=hinted, room=room))
    told = next_step(
        taken,
        sa.literal_column(f"'{State.PENDING}'"),
        sa.literal_column(f"'{State.IN_PROGRESS}'"),
        sa.literal_column(f"'{CLAIMED}'"),
        param("node", transitions.c.node_id.type),
        param("epoch", sa.BigInteger()),
    )
    paused = sa.select(holder.c.paused).scalar_subquery()
    return (
        sa.select(paused, NOW, taken.c.place, taken.c.step, taken.c.since, taken.c.intent)
        .select_from(sa.select(mode()).subquery("moded").outerjoin(taken, sa.true()))
        .add_cte(told)
    )


def _both(homes: Sequence[Home], carries: Any, *, hinted: bool, room: bool) -> Any:
    """What is taken of each lane: control first, then messages for what is left of the limit."""
    parts: list[Any] = []
    for home in homes:
        take: Any = None if room else param("take", sa.Integer())
        if parts and not room:
            before = sa.select(sa.func.count()).select_from(parts[0]).scalar_subquery()
            take = sa.func.greatest(take - before, sa.literal_column("0"))
        place = sa.literal_column(str(HOMES.index(home)), sa.Integer()).label("place")
        change = claiming(home, take, carries, hinted=hinted)
        intent = packed(home.shape.columns).label("intent")
        parts.append(change.returning(place, home.c.id, home.c.attempts, intent).cte(home.lane))
    return parts[0] if len(parts) == 1 else sa.union_all(*(sa.select(part) for part in parts)).subquery("both")


def with_last_step(moved: Any) -> Any:
    """The same with `step` and `since`: the number and the time of the last step of each intent, as it was before the
    statement."""
    steps = transitions.alias("steps")
    newest = sa.select(steps.c.n, steps.c.at).where(steps.c.intent_id == moved.c.id).order_by(steps.c.n.desc())
    last = newest.limit(ONE).lateral("last")
    both = moved.outerjoin(last, sa.true())
    return sa.select(*moved.c, last.c.n.label("step"), last.c.at.label("since")).select_from(both).cte("taken")


def next_step(moved: Any, from_state: Any, to_state: Any, reason: Any, node: Any, epoch: Any) -> Any:
    """Written into the history for each of what was moved, behind its last one."""
    n = sa.func.coalesce(moved.c.step, 0) + ONE
    values = sa.select(moved.c.id, n, NOW, from_state, to_state, reason, node, epoch, moved.c.attempts)
    names = ["intent_id", "n", "at", "from_state", "to_state", "reason", "node_id", "epoch", "attempt"]
    return sa.insert(transitions).from_select(names, values).cte("told")


_ALL = {hinted: Statement(partial(_statement, HOMES, hinted=hinted, room=False)) for hinted in (False, True)}
_TOLD_OF = {home.lane: Statement(partial(_statement, (home,), hinted=True, room=True)) for home in HOMES}


async def claim(connection: Connection, requests: Sequence[ClaimRequest]) -> list[Claims]:
    """Of both lanes, within the limit."""
    return [
        await _claim(connection, request, _ALL[request.ids is not None], take=request.limit) for request in requests
    ]


async def claim_told(connection: Connection, requests: Sequence[ClaimRequest], home: Home) -> list[Claims]:
    """Of one lane, and no more than signals told of."""
    return [await _claim(connection, request, _TOLD_OF[home.lane]) for request in requests]


def joined(first: Claims, more: Claims) -> Claims:
    """Two claims of one session; when it was claimed elsewhere between them, whoever did so found what the first
    took."""
    transitions = (*first.transitions, *more.transitions)
    if more.stale:
        return Claims(stale=True, transitions=transitions, now=more.now)
    intents = sorted((*first.intents, *more.intents), key=lambda intent: intent.op is Op.MESSAGE)
    return Claims(intents=tuple(intents), transitions=transitions, now=more.now)


async def _claim(connection: Connection, request: ClaimRequest, statement: Statement, **take: int) -> Claims:
    rows = await statement.rows(connection, **arguments(request), **take, lazily=request.lazily)
    paused, now = rows[0][:2]
    if paused is None:
        return Claims(stale=True, now=now)
    taken = [(place, HOMES[place].shape.read(intent), *last) for _, _, place, *last, intent in rows if intent]
    taken.sort(key=lambda one: (one[0], one[1].seq))
    return Claims(
        intents=tuple(intent for _, intent, *_ in taken),
        transitions=tuple(_step(intent, request, n or 0, since, now) for _, intent, n, since in taken),
        now=now,
    )


def _step(intent: Intent, request: ClaimRequest, n: int, since: Instant | None, now: Instant) -> Transition:
    return Transition(
        intent_id=intent.id,
        op=intent.op,
        n=n + 1,
        at=now,
        from_state=State.PENDING,
        to_state=State.IN_PROGRESS,
        reason=CLAIMED,
        node_id=request.session.node_id,
        epoch=request.session.epoch,
        attempt=intent.attempts,
        seconds=max(0, now - (since or intent.created_at)) / 1_000_000,
        detail={},
    )
