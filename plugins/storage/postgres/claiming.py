"""A claim in one statement: the heads of a broker's lanes, control before messages, with their step in the history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from kernel import ClaimRequest, Claims, Instant, Intent, State, Transition
from plugins.storage.ledger.claims import arguments, carried, claiming
from plugins.storage.ledger.homes import CONTROL, HOMES, MESSAGES
from plugins.storage.ledger.query import NOW, param
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.durability import mode
from plugins.storage.postgres.given import Statement
from plugins.storage.schema import runtime_brokers, transitions

CLAIMED = "claimed"
_BEFORE = 5
"""Columns before those of the intent: held, now, the lane, the last step's number and time."""


def _statement(*, hinted: bool) -> Any:
    """The broker's row is locked, shared, before anything is taken: whoever claims the session meanwhile waits, and
    then finds what was taken here."""
    holder = (
        carried(paused=True)
        .add_columns(runtime_brokers.c.paused)
        .with_for_update(read=True)
        .cte("holder")
        .prefix_with("MATERIALIZED")
    )
    carries = sa.select(sa.literal_column("1")).select_from(holder).where(sa.not_(holder.c.paused)).exists()
    control = claiming(CONTROL, param("take"), carries, hinted=hinted).cte("control")
    taken = sa.select(sa.func.count()).select_from(control).scalar_subquery()
    room = sa.func.greatest(param("take", sa.Integer()) - taken, 0)
    message = claiming(MESSAGES, room, carries, hinted=hinted).cte("message")
    both = sa.union_all(
        *(sa.select(sa.literal_column(str(n)).label("place"), *table.c) for n, table in enumerate((control, message)))
    ).cte("both")
    step, at = last_step(both.c.id)
    told = sa.insert(transitions).from_select(
        ["intent_id", "n", "at", "from_state", "to_state", "reason", "node_id", "epoch", "attempt"],
        sa.select(
            both.c.id,
            sa.func.coalesce(step, 0) + 1,
            NOW,
            sa.literal_column(f"'{State.PENDING}'"),
            sa.literal_column(f"'{State.IN_PROGRESS}'"),
            sa.literal_column(f"'{CLAIMED}'"),
            param("node", transitions.c.node_id.type),
            param("epoch", sa.BigInteger()),
            both.c.attempts,
        ),
    )
    held = sa.select(sa.func.count()).select_from(holder).scalar_subquery()
    return (
        sa.select(held, NOW, step, at, *both.c)
        .select_from(sa.select(mode()).subquery("moded").outerjoin(both, sa.true()))
        .order_by(both.c.place, both.c.seq)
        .add_cte(told.cte("told"))
    )


def last_step(intent_id: Any) -> tuple[Any, Any]:
    """The number and the time of the last step of this intent, as it was before the statement."""

    def newest(column: Any) -> Any:
        steps = transitions.alias(f"last_{column.name}")
        return (
            sa.select(steps.c[column.name])
            .where(steps.c.intent_id == intent_id)
            .order_by(steps.c.n.desc())
            .limit(1)
            .scalar_subquery()
        )

    return newest(transitions.c.n), newest(transitions.c.at)


_CLAIM = {hinted: Statement(lambda hinted=hinted: _statement(hinted=hinted)) for hinted in (False, True)}  # type: ignore[misc]


async def claim(connection: Connection, requests: Sequence[ClaimRequest]) -> list[Claims]:
    return [await _claim(connection, request) for request in requests]


async def _claim(connection: Connection, request: ClaimRequest) -> Claims:
    rows = await _CLAIM[request.ids is not None].rows(
        connection, **arguments(request), take=request.limit, lazily=request.lazily
    )
    held, now = rows[0][:2]
    if not held:
        return Claims(stale=True, now=now)
    intents: list[Intent] = []
    told: list[Transition] = []
    for row in rows:
        if row[_BEFORE] is not None:
            home = HOMES[row[_BEFORE - 1]]
            intent = home.shape.read(row, _BEFORE)
            intents.append(intent)
            told.append(_step(intent, request, row[2] or 0, row[3], now))
    return Claims(intents=tuple(intents), transitions=tuple(told), now=now)


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
