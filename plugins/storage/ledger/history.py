"""The steps of an intent's life: written in the transaction that makes them true."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa

from kernel import ACCEPTED, ROUTED, Instant, Intent, Op, State, Transition
from plugins.storage.ledger.query import Query, Tx, among, param
from plugins.storage.schema import parse, transitions

T = TypeVar("T")
_c = transitions.c
LEFT_TO_REPORT = {"agent": "left to the broker's next report"}
"""The detail of an end that came when its broker had been claimed again."""
_NAMES = tuple(column.name for column in _c)
_LAST = Query[tuple[int, int]](
    sa.select(_c.n, _c.at).where(_c.intent_id == param("which")).order_by(_c.n.desc()).limit(1)
)
_OF_INTENT = Query[tuple[Any, ...]](sa.select(*_c).where(_c.intent_id == param("which")).order_by(_c.n))


_newest = sa.select(sa.func.max(_c.n)).where(_c.intent_id == sa.literal_column("of_these.intent_id"))
_these = transitions.alias("of_these")
_LASTS = Query[tuple[Any, ...]](
    sa.select(_these.c.intent_id, _these.c.n, _these.c.at).where(
        among(_these.c.intent_id, "these"), _these.c.n == _newest.scalar_subquery()
    )
)
SIZES = (25, 5, 1)
"""Rows in one statement. Few sizes, so that each is compiled once."""


@cache
def _insert(rows: int) -> Query[Any]:
    """So many steps in one statement: between two statements the writer may have to wait for the interpreter."""
    named = [{column.name: param(f"{column.name}_{row}", column.type) for column in _c} for row in range(rows)]
    return Query(sa.insert(transitions).values(named))


def step(
    tx: Tx,
    intent: Intent,
    came_from: str,
    reason: str,
    node_id: str,
    *,
    epoch: int | None = None,
    attempt: int | None = None,
    detail: dict[str, Any] | None = None,
) -> Transition:
    """Write that `intent` came from `came_from` into the state that it has now."""
    n, since = tx.one(_LAST, which=intent.id) or (0, intent.created_at)
    told = Transition(
        intent_id=intent.id,
        op=intent.op,
        n=n + 1,
        at=tx.now,
        from_state=came_from,
        to_state=intent.state,
        reason=reason,
        node_id=node_id,
        epoch=epoch,
        attempt=attempt,
        seconds=max(0, tx.now - since) / 1_000_000,
        detail=detail or {},
    )
    _write(tx, told)
    return told


def steps(
    tx: Tx,
    moved: Sequence[tuple[Intent, Intent]],
    reason: str,
    node_id: Callable[[Intent], str],
    detail: dict[str, Any] | None = None,
) -> list[Transition]:
    """Write for many at once that each came from what it was into what it is: out of the hands that had it, if any
    had."""
    last = {row[0]: row[1:] for row in tx.all(_LASTS, these=[after.id for _, after in moved])} if moved else {}
    told = []
    for before, after in moved:
        n, since = last.get(after.id, (0, after.created_at))
        told.append(
            Transition(
                intent_id=after.id,
                op=after.op,
                n=n + 1,
                at=tx.now,
                from_state=before.state,
                to_state=after.state,
                reason=reason,
                node_id=node_id(before),
                epoch=before.claimed_epoch if before.state is State.IN_PROGRESS else None,
                attempt=before.attempts,
                seconds=max(0, tx.now - since) / 1_000_000,
                detail=detail or {},
            )
        )
    for some in in_sizes(told):
        _write(tx, *some)
    return told


def in_sizes(many: Sequence[T]) -> Iterator[list[T]]:
    """All of them, in as few statements as may be."""
    left = iter(many)
    count = len(many)
    for size in SIZES:
        while count >= size:
            yield list(islice(left, size))
            count -= size


def born(tx: Tx, intent: Intent, advice: dict[str, str]) -> list[Transition]:
    """accepted → routed → the state in which its row begins. `advice`: why this route."""
    reason = "recorded" if intent.state is State.PENDING else "in_hand"
    return _write(
        tx,
        early(intent, 1, ACCEPTED, ROUTED, intent.route, intent.created_at, advice),
        early(intent, 2, ROUTED, intent.state, reason, tx.now),
    )


def born_together(tx: Tx, intents: Sequence[tuple[Intent, dict[str, str]]]) -> list[Transition]:
    """The same for many that begin pending, each with its own advice."""
    steps = []
    for intent, advice in intents:
        steps += [
            early(intent, 1, ACCEPTED, ROUTED, intent.route, intent.created_at, advice),
            early(intent, 2, ROUTED, intent.state, "recorded", tx.now),
        ]
    return _write(tx, *steps)


def born_ended(tx: Tx, intent: Intent, advice: dict[str, str], reason: str, *, current: bool) -> list[Transition]:
    """A LOCAL call, of which nothing was written before."""
    return _write(tx, *ended_early(intent, advice, reason, tx.now, current=current))


def ended_early(
    intent: Intent, advice: dict[str, str], reason: str, now: Instant, *, current: bool
) -> tuple[Transition, ...]:
    """accepted → routed → in_progress → its end. `current`: the broker's row still carries the session."""
    sent = max(intent.created_at, min(intent.sent_at or now, now))
    end = Transition(
        intent_id=intent.id,
        op=intent.op,
        n=3,
        at=now,
        from_state=State.IN_PROGRESS,
        to_state=intent.state,
        reason=reason,
        node_id=intent.claimed_by or intent.node_id,
        epoch=intent.claimed_epoch,
        attempt=intent.attempts,
        seconds=(now - sent) / 1_000_000,
        detail={} if current else LEFT_TO_REPORT,
    )
    return (
        early(intent, 1, ACCEPTED, ROUTED, intent.route, intent.created_at, advice),
        early(intent, 2, ROUTED, State.IN_PROGRESS, "in_hand", sent),
        end,
    )


def history(tx: Tx, intent_id: str, op: Op) -> tuple[Transition, ...]:
    """All steps of one intent, the first one first."""
    found: list[Transition] = []
    for row in tx.all(_OF_INTENT, which=intent_id):
        values = dict(zip(_c.keys(), row, strict=True))
        since = found[-1].at if found else values["at"]
        values["detail"] = parse(values["detail"]) or {}
        found.append(Transition(op=op, seconds=max(0, values["at"] - since) / 1_000_000, **values))
    return tuple(found)


def early(
    intent: Intent, n: int, came_from: str, to: str, reason: str, at: int, detail: dict[str, str] | None = None
) -> Transition:
    claimed = to == State.IN_PROGRESS
    return Transition(
        intent_id=intent.id,
        op=intent.op,
        n=n,
        at=Instant(at),
        from_state=came_from,
        to_state=to,
        reason=reason,
        node_id=intent.node_id,
        epoch=intent.claimed_epoch if claimed else None,
        attempt=intent.attempts if claimed else None,
        seconds=max(0, at - intent.created_at) / 1_000_000,
        detail=dict(detail or {}),
    )


def _write(tx: Tx, *written: Transition) -> list[Transition]:
    rows = enumerate(written)
    values = {f"{name}_{row}": value for row, one in rows for name, value in _columns(one).items()}
    tx.run(_insert(len(written)), **values)
    return list(written)


def _columns(transition: Transition) -> dict[str, Any]:
    return {name: getattr(transition, name) for name in _NAMES} | {"detail": transition.detail or None}
