"""Since when the database has kept every commit: what is older may have been claimed once more than its row tells.

On PostgreSQL the row stands in an UNLOGGED table. A crash of the server, and a failover, empty it: exactly what may
have undone commits that were not waited for. With a file there is no such time.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement

from kernel import Era
from plugins.storage.ledger.query import NextSeq, Query, Tx, first
from plugins.storage.schema import eras as table

_INTENTS = "intents"
_c = table.c
_FIND = Query[Era](sa.select(_c.id, _c.since).where(_c.name == _INTENTS), lambda row: Era(id=str(row[0]), since=row[1]))
_BEGIN = Query[Any](
    postgresql.insert(table)
    .from_select(
        ["name", "id", "since"], sa.select(sa.literal(_INTENTS, sa.Text()), sa.func.gen_random_uuid(), NextSeq())
    )
    .on_conflict_do_nothing(index_elements=[_c.name])
)


def era(tx: Tx) -> Era:
    """The one of now; who finds none begins one. Transactions that record at this moment get a `seq` of either."""
    if tx.alone:
        return Era(id="file", since=0)
    found = tx.one(_FIND)
    if found is None:
        tx.run(_BEGIN)
        found = tx.one(_FIND)
        assert found is not None
    return found


class Unsure(ColumnElement[bool]):
    """Whether what has this `seq` was recorded before the era of now, or none has begun yet."""

    inherit_cache = False
    _is_implicitly_boolean = True
    type = sa.Boolean()

    def __init__(self, seq: Any) -> None:
        self.seq = seq


@compiles(Unsure)
def _never(_: Unsure, _compiler: Any, **_kw: Any) -> str:
    return "(1 = 0)"


@compiles(Unsure, "postgresql")
def _before(element: Unsure, compiler: Any, **kw: Any) -> str:
    seq = compiler.process(element.seq, **kw)
    return f"(NOT EXISTS (SELECT 1 FROM eras WHERE eras.since <= {seq}))"  # noqa: S608 - both are ours


_SINCE = Query[int](sa.select(_c.since).where(_c.name == _INTENTS), first)


def sure_from(tx: Tx) -> int | None:
    """The first `seq` of which no claim may have been undone by a crash; None: no era has begun."""
    return 0 if tx.alone else tx.one(_SINCE)
