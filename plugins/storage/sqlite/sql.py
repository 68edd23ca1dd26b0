"""SQLAlchemy Core for plugins with tables of their own, on the writer's connection and in its transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from plugins.storage.sqlite.tx import SqliteTx
from plugins.storage.sqlite.worker import Writer

T = TypeVar("T")


def engine_on(connection: sqlite3.Connection) -> sa.Engine:
    """An engine over one connection that somebody else begins and commits."""
    return sa.create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)


class SqliteSql:
    """One function, one transaction; it shares the commit of whatever else is written at that moment."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._engine: sa.Engine | None = None

    async def run(self, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Rows for a SELECT or RETURNING, else none."""

        def run_it(connection: sa.Connection) -> list[tuple[Any, ...]]:
            result = connection.execute(statement, parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

        return await self.transaction(run_it)

    async def transaction(self, function: Callable[[Any], T]) -> T:
        """All of what `function(connection)` does, or nothing."""

        def run_it(tx: SqliteTx) -> T:
            if self._engine is None:
                self._engine = engine_on(tx.connection)
            with self._engine.connect() as connection:
                return function(connection)

        return await self._writer.call(run_it)
