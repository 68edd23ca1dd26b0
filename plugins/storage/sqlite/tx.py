"""One transaction on a raw SQLite connection."""

from __future__ import annotations

import sqlite3
from typing import Any, TypeVar

from sqlalchemy.dialects import sqlite

from kernel import Instant
from plugins.storage.ledger.query import Query

T = TypeVar("T")
DIALECT = sqlite.dialect(paramstyle="qmark")


class SqliteTx:
    """What the ledger's functions are given. Nobody else writes meanwhile: there is nothing to queue for."""

    alone = True

    def __init__(self, connection: sqlite3.Connection, now: Instant, lost_after: int, stale_after: int) -> None:
        """`lost_after`, `stale_after`: microseconds without a beat, or a renewal, that a node or a session lives."""
        self.connection = connection
        self.now = now
        self._always = {"now": now, "lost_after": lost_after, "stale_after": stale_after}

    def execute(self, query: Query[Any], values: dict[str, Any]) -> sqlite3.Cursor:
        prepared = query.on(DIALECT)
        return self.connection.execute(prepared.sql, prepared.arguments({**self._always, **values}))

    def all(self, query: Query[T], **values: Any) -> list[T]:
        read = query.read
        return [read(row) for row in self.execute(query, values).fetchall()]

    def one(self, query: Query[T], **values: Any) -> T | None:
        rows = self.execute(query, values).fetchall()
        return query.read(rows[0]) if rows else None

    def run(self, query: Query[Any], **values: Any) -> int:
        return self.execute(query, values).rowcount

    def queue(self, name: str) -> None:
        """The one writer is the queue."""

    def elect(self, name: str) -> bool:
        return True
