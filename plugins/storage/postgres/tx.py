"""One transaction on a raw PostgreSQL connection, as the ledger's functions see it.

They are plain functions: each statement steps out of them into the event loop and back with its answer, which is
SQLAlchemy's own way of running its synchronous half on asyncio.
"""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.util.concurrency import await_only

from kernel import Instant
from plugins.storage.ledger.query import Query
from plugins.storage.postgres.connecting import Connection

T = TypeVar("T")
DIALECT = dialect.dialect()  # type: ignore[no-untyped-call]


class PostgresTx:
    """What the ledger's functions are given. Others write at the same time."""

    alone = False

    def __init__(self, connection: Connection, lives: dict[str, int]) -> None:
        """`lives`: `lost_after` and `stale_after`, microseconds that a node lives without a beat and a session without
        a renewal."""
        self._connection = connection
        self._always = lives
        self._now: Instant | None = None
        self.wrote = False
        """Some statement changed something."""

    @property
    def now(self) -> Instant:
        """The server's, of this transaction; asked for when a function wants to reckon with it itself."""
        if self._now is None:
            self._now = await_only(self._connection.fetchval("SELECT now()"))
        assert self._now is not None
        return self._now

    def all(self, query: Query[T], **values: Any) -> list[T]:
        read = query.read
        return [read(row) for row in self._rows(query, values)]

    def one(self, query: Query[T], **values: Any) -> T | None:
        rows = self._rows(query, values)
        return query.read(rows[0]) if rows else None

    def run(self, query: Query[Any], **values: Any) -> int:
        text, arguments = self._ready(query, values)
        status: str = await_only(self._connection.execute(text, *arguments))
        changed = int(status.rpartition(" ")[2])
        self.wrote = self.wrote or changed > 0
        return changed

    def queue(self, name: str) -> None:
        asked = self._connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", name)
        await_only(asked)

    def elect(self, name: str) -> bool:
        asked = self._connection.fetchval("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))", f"sweep {name}")
        return bool(await_only(asked))

    def _rows(self, query: Query[Any], values: dict[str, Any]) -> list[Any]:
        text, arguments = self._ready(query, values)
        rows: list[Any] = await_only(self._connection.fetch(text, *arguments))
        self.wrote = self.wrote or (query.writes and bool(rows))
        return rows

    def _ready(self, query: Query[Any], values: dict[str, Any]) -> tuple[str, list[Any]]:
        prepared = query.on(DIALECT)
        return prepared.sql, [storable(value) for value in prepared.arguments({**self._always, **values})]


def storable(value: Any) -> Any:
    """PostgreSQL's text has no U+0000: it becomes U+FFFD, so that nothing a broker says is lost for it."""
    return value.replace("\x00", "\ufffd") if isinstance(value, str) and "\x00" in value else value
