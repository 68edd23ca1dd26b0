"""What a batch is about, as rows that its statement can join: one argument, however many they are. A batch of one is a
row whose columns are arguments each, and nothing is left of the join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from plugins.storage.ledger.query import Prepared
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.tx import DIALECT, storable
from plugins.storage.schema import Count, Id, Instant, Json

PLACE = "n"
"""The column that tells which of the batch's questions a row belongs to."""


def rows(name: str, **columns: Any) -> Any:
    """A table that the argument `name` holds: a JSON list of objects with these columns, and `n`. Instants and spans
    are in microseconds there."""
    kinds = {PLACE: sa.Integer, **columns}
    function = sa.func.json_to_recordset(sa.bindparam(name, type_=postgresql.JSON()))
    table = function.table_valued(*(sa.column(column, _kind(kind)) for column, kind in kinds.items()))
    every = table.render_derived(name=f"{name}_row", with_types=True)
    return sa.select(*every.c).cte(name).prefix_with("MATERIALIZED")


def row(name: str, **columns: Any) -> Any:
    """The same of one question: each column is an argument of its own."""
    given = [sa.bindparam(column, type_=_made(kind)).label(column) for column, kind in columns.items()]
    return sa.select(sa.literal_column("0").label(PLACE), *given).subquery(name)


def _made(kind: Any) -> Any:
    """Instants come as numbers."""
    made = kind() if isinstance(kind, type) else kind
    return sa.BigInteger() if isinstance(made, Instant) else made


def _kind(kind: Any) -> Any:
    """JSON is taken apart by the server."""
    made = _made(kind)
    return {Id: postgresql.UUID(as_uuid=False), Json: postgresql.JSONB(), Count: sa.BigInteger()}.get(type(made), made)


def instant(column: Any) -> Any:
    """A number of microseconds as an instant; NULL stays NULL."""
    epoch: Any = sa.literal_column("'epoch'::timestamptz")
    return sa.type_coerce(epoch + column * sa.literal_column("interval '1 microsecond'"), Instant())


def span(column: Any) -> Any:
    return column * sa.literal_column("interval '1 microsecond'")


def packed(columns: Iterable[Any]) -> Any:
    """So many columns in one, for what a statement hands on: each step of a plan pays for each column again, whenever
    it is run. It comes as a tuple."""
    return sa.func.row(*map(_typed, columns))


def _typed(column: Any) -> Any:
    """A word of ours has no type inside of a row."""
    inner = column.element if isinstance(column, sa.sql.elements.Label) else column
    return sa.cast(inner, inner.type) if getattr(inner, "is_literal", False) else inner


def listed(values: Sequence[dict[str, Any]]) -> str:
    return msgspec.json.encode([{PLACE: n, **one} for n, one in enumerate(values)]).decode()


class Statement:
    """Compiled at its first use."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._prepared: Prepared | None = None

    @property
    def prepared(self) -> Prepared:
        if self._prepared is None:
            self._prepared = Prepared(self._build(), DIALECT)
        return self._prepared

    async def rows(self, connection: Connection, **values: Any) -> list[Any]:
        prepared = self.prepared
        found: list[Any] = await connection.fetch(prepared.sql, *map(storable, prepared.arguments(values)))
        return found
