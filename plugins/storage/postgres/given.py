"""What a batch is about, as rows that its statement can join: one argument, however many they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from plugins.storage.ledger.query import Prepared
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.tx import DIALECT
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


def _kind(kind: Any) -> Any:
    """Instants come as numbers; JSON is taken apart by the server."""
    made = kind() if isinstance(kind, type) else kind
    if isinstance(made, Instant):
        return sa.BigInteger()
    return {Id: postgresql.UUID(as_uuid=False), Json: postgresql.JSONB(), Count: sa.BigInteger()}.get(type(made), made)


def instant(column: Any) -> Any:
    """A number of microseconds as an instant; NULL stays NULL."""
    epoch: Any = sa.literal_column("'epoch'::timestamptz")
    return sa.type_coerce(epoch + column * sa.literal_column("interval '1 microsecond'"), Instant())


def span(column: Any) -> Any:
    return column * sa.literal_column("interval '1 microsecond'")


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
        found: list[Any] = await connection.fetch(prepared.sql, *prepared.arguments(values))
        return found
