"""Statements written in SQLAlchemy Core, compiled once, run on a raw connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.base import Executable

from kernel import Instant
from plugins.storage.schema import Json, dump

T = TypeVar("T")
DIALECT = sqlite.dialect(paramstyle="qmark")


class Query(Generic[T]):
    """One statement: its text, the order of its arguments, and what a row of its answer becomes."""

    def __init__(self, statement: Executable, read: Callable[[tuple[Any, ...]], T] = lambda row: row) -> None:  # type: ignore[assignment, return-value]
        compiled = statement.compile(dialect=DIALECT)  # type: ignore[attr-defined]
        self.sql: str = compiled.string
        self.read = read
        self._order: list[str] = list(compiled.positiontup or ())
        self._fixed: dict[str, Any] = {
            name: value for name, value in compiled.params.items() if not compiled.binds[name].required
        }
        self._json = [at for at, name in enumerate(self._order) if isinstance(_type_of(compiled, name), Json)]

    def arguments(self, given: dict[str, Any]) -> list[Any]:
        fixed = self._fixed
        values = [given[name] if name in given else fixed[name] for name in self._order]
        for at in self._json:
            values[at] = dump(values[at])
        return values

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._order)


def _type_of(compiled: Any, name: str) -> Any:
    bind = compiled.binds.get(name)
    return None if bind is None else bind.type


class Tx:
    """One transaction on the raw connection, at one instant: what the functions of this room are given.

    Every statement may name `now`, `alive_since` (nodes that beat after it live) and `fresh_since` (sessions that
    were renewed after it count).
    """

    def __init__(self, connection: sqlite3.Connection, now: Instant, alive_since: int, fresh_since: int) -> None:
        self.connection = connection
        self.now = now
        self._always = {"now": now, "alive_since": alive_since, "fresh_since": fresh_since}

    def execute(self, query: Query[Any], values: dict[str, Any]) -> sqlite3.Cursor:
        return self.connection.execute(query.sql, query.arguments({**self._always, **values}))

    def all(self, query: Query[T], **values: Any) -> list[T]:
        read = query.read
        return [read(row) for row in self.execute(query, values).fetchall()]

    def one(self, query: Query[T], **values: Any) -> T | None:
        """The first row; None when there is none."""
        rows = self.execute(query, values).fetchall()
        return query.read(rows[0]) if rows else None

    def run(self, query: Query[Any], **values: Any) -> int:
        """How many rows it changed."""
        return self.execute(query, values).rowcount


def first(row: tuple[Any, ...]) -> Any:
    return row[0]


def param(name: str, type_: Any = None) -> Any:
    return sa.bindparam(name, type_=type_)


def listed(name: str) -> Any:
    """`column.in_(listed("ids"))`: the values of a JSON array in one argument, however many they are."""
    return sa.select(sa.func.json_each(sa.bindparam(name, type_=sa.Text())).table_valued("value").c.value)
