"""Messages that are said together: their rows and histories, many in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import sqlalchemy as sa

from kernel import Intent, NewIntent, Op, State, Transition
from plugins.storage.ledger.filling import next_seq, row_of
from plugins.storage.ledger.history import born_together, in_sizes
from plugins.storage.ledger.homes import MESSAGES
from plugins.storage.ledger.query import NextSeq, Query, Tx, param


@cache
def _insert(rows: int) -> Query[Intent]:
    table = MESSAGES.table
    named = [
        {name: NextSeq(f"seq_{n}") if name == "seq" else param(f"{name}_{n}", table.c[name].type) for name in _NAMES}
        for n in range(rows)
    ]
    return Query(sa.insert(table).values(named).returning(*MESSAGES.shape.columns), MESSAGES.shape.read)


_NAMES = tuple(
    column.name
    for column in MESSAGES.table.c
    if column.name not in ("broker_crashes", "progress_at", "next_attempt_at")  # they begin with their defaults
)


def fits(intents: Sequence[NewIntent]) -> bool:
    """Whether these can be written here: plain messages, in nobody's hands."""
    return len(intents) > 1 and all(new.op is Op.MESSAGE and new.message and not new.claim for new in intents)


def begin_together(tx: Tx, intents: Sequence[NewIntent]) -> tuple[list[Intent], list[Transition]]:
    """In the order of `intents`, which is the order of their numbers too."""
    written: list[Intent] = []
    told: list[Transition] = []
    for some in in_sizes(intents):
        numbers = _numbers(tx, len(some))
        rows = [row_of(tx, new, seq=seq, state=State.PENDING) for new, seq in zip(some, numbers, strict=True)]
        values = {f"{name}_{n}": row.get(name) for n, row in enumerate(rows) for name in _NAMES}
        found = {intent.id: intent for intent in tx.all(_insert(len(some)), **values)}
        written += [found[new.id] for new in some]
        told += born_together(tx, [(found[new.id], new.advice) for new in some])
    return written, told


def _numbers(tx: Tx, count: int) -> list[int | None]:
    """Consecutive ones where this transaction gives them; else the database does, row by row."""
    if not tx.alone:
        return [None] * count
    last = next_seq(tx, count)
    return list(range(last - count + 1, last + 1))
