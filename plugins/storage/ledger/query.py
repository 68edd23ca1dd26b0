"""Statements written once in SQLAlchemy Core, compiled once for each dialect, run on a raw connection.

What the dialects say differently has a word of its own here: the time of the transaction, a list in one argument, the
larger of two, the next number of `seq`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.expression import ColumnElement

from kernel import Instant as Moment
from plugins.storage.schema import SEQUENCE, Id, Instant, Json, dump

T = TypeVar("T")


class Prepared:
    """One statement for one dialect: its text, and how what is given becomes its arguments."""

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        self.sql: str = compiled.string
        self.names: tuple[str, ...] = tuple(compiled.positiontup or ())
        self._fixed: dict[str, Any] = {
            name: value for name, value in compiled.params.items() if not compiled.binds[name].required
        }
        lists = _encoded if dialect.name == "sqlite" else list
        self._converted: list[tuple[int, Callable[[Any], Any]]] = []
        for at, name in enumerate(self.names):
            kind = compiled.binds[name].type if name in compiled.binds else None
            if isinstance(kind, Json):
                self._converted.append((at, dump))
            elif isinstance(kind, sa.ARRAY):
                self._converted.append((at, lists))

    def arguments(self, given: dict[str, Any]) -> list[Any]:
        fixed = self._fixed
        values = [given[name] if name in given else fixed[name] for name in self.names]
        for at, convert in self._converted:
            values[at] = convert(values[at])
        return values


def _encoded(values: Sequence[Any]) -> str:
    return msgspec.json.encode(values).decode()


class Query(Generic[T]):
    """One statement, and what a row of its answer becomes."""

    def __init__(self, statement: Executable, read: Callable[[Any], T] = lambda row: row) -> None:
        self.statement = statement
        self.read = read
        self.writes: bool = statement.is_dml
        self._prepared: dict[str, Prepared] = {}

    def on(self, dialect: Dialect) -> Prepared:
        """Compiled at its first use, and kept."""
        prepared = self._prepared.get(dialect.name)
        if prepared is None:
            prepared = self._prepared[dialect.name] = Prepared(self.statement, dialect)
        return prepared


class Tx(Protocol):
    """One transaction, at one instant: what the functions of this room are given.

    A function may be run again from its beginning (two transactions met, a connection was lost before the commit): it
    keeps nothing outside of its transaction.
    """

    @property
    def now(self) -> Moment:
        """When it began; the database's clock where the database is a server."""
        ...

    @property
    def alone(self) -> bool:
        """No other transaction writes meanwhile, and no other hub uses this database."""
        ...

    def all(self, query: Query[T], **values: Any) -> list[T]: ...

    def one(self, query: Query[T], **values: Any) -> T | None:
        """The first row; None when there is none."""
        ...

    def run(self, query: Query[Any], **values: Any) -> int:
        """How many rows it changed."""
        ...

    def queue(self, name: str) -> None:
        """Wait until no other transaction stands in the queue of this name: what is read from now on stays true for
        all who queue."""
        ...

    def elect(self, name: str) -> bool:
        """Whether this transaction is the only one now that does `name`: for sweeps, of which one runs at a time."""
        ...


class Overtaken(Exception):
    """What was read had changed when it was to be written: the transaction is run again."""


def first(row: Any) -> Any:
    return row[0]


def param(name: str, type_: Any = None) -> Any:
    return sa.bindparam(name, type_=type_)


# -- the time -----------------------------------------------------------------------------------------------


class Now(ColumnElement[int]):
    """When the transaction began: a parameter on SQLite, the server's word on PostgreSQL."""

    inherit_cache = True
    type = Instant()


class Shifted(ColumnElement[int]):
    """So many microseconds before (-) or after (+) now: the parameter `name`."""

    inherit_cache = False
    type = Instant()

    def __init__(self, sign: str, name: str) -> None:
        self.sign = sign
        self.span = sa.bindparam(name, type_=sa.BigInteger())


class Seconds(ColumnElement[float]):
    """From one instant until now."""

    inherit_cache = False
    type = sa.Float()

    def __init__(self, since: Any) -> None:
        self.since = since


@compiles(Now)
def _now(_: Now, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(sa.bindparam("now", type_=Instant()), **kw))


@compiles(Now, "postgresql")
def _server_now(_: Now, _compiler: Any, **_kw: Any) -> str:
    return "now()"


@compiles(Shifted)
def _shifted(element: Shifted, compiler: Any, **kw: Any) -> str:
    return f"({compiler.process(NOW, **kw)} {element.sign} {compiler.process(element.span, **kw)})"


@compiles(Shifted, "postgresql")
def _server_shifted(element: Shifted, compiler: Any, **kw: Any) -> str:
    return f"(now() {element.sign} {compiler.process(element.span, **kw)} * interval '1 microsecond')"


@compiles(Seconds)
def _seconds(element: Seconds, compiler: Any, **kw: Any) -> str:
    return f"(({compiler.process(NOW, **kw)} - {compiler.process(element.since, **kw)}) / 1000000.0)"


@compiles(Seconds, "postgresql")
def _server_seconds(element: Seconds, compiler: Any, **kw: Any) -> str:
    return f"extract(epoch FROM now() - {compiler.process(element.since, **kw)})::float8"


NOW: Any = Now()


def ago(name: str) -> Any:
    """`column >= ago("span")`: the parameter is in microseconds."""
    return Shifted("-", name)


# -- lists, the larger of two, numbers ----------------------------------------------------------------------


class Among(ColumnElement[bool]):
    """Whether a column's value stands in a list that is one argument, however long it is."""

    inherit_cache = False
    _is_implicitly_boolean = True  # else SQLite is asked whether it `= 1`, and no index is used
    type = sa.Boolean()

    def __init__(self, column: Any, name: str, item: Any) -> None:
        self.column = column
        self.values = sa.bindparam(name, type_=sa.ARRAY(item))


@compiles(Among)
def _among(element: Among, compiler: Any, **kw: Any) -> str:
    column = compiler.process(element.column, **kw)
    return f"{column} IN (SELECT value FROM json_each({compiler.process(element.values, **kw)}))"  # noqa: S608


@compiles(Among, "postgresql")
def _any_of(element: Among, compiler: Any, **kw: Any) -> str:
    return f"{compiler.process(element.column, **kw)} = ANY({compiler.process(element.values, **kw)})"


def among(column: Any, name: str, item: Any = Id) -> Any:
    return Among(column, name, item())


class Within(ColumnElement[bool]):
    """Whether a column's value is found by a query that stands for itself: it is answered first, and then the column's
    index is used. PostgreSQL would else join the two, from whichever side it takes for the shorter."""

    inherit_cache = False
    type = sa.Boolean()
    _is_implicitly_boolean = True

    def __init__(self, column: Any, query: Any) -> None:
        self.column = column
        self.query = query.scalar_subquery()


@compiles(Within)
def _in(element: Within, compiler: Any, **kw: Any) -> str:
    return f"{compiler.process(element.column, **kw)} IN {compiler.process(element.query, **kw)}"


@compiles(Within, "postgresql")
def _any_in(element: Within, compiler: Any, **kw: Any) -> str:
    return f"{compiler.process(element.column, **kw)} = ANY(ARRAY{compiler.process(element.query, **kw)})"


def within(column: Any, query: Any) -> Any:
    return Within(column, query)


class Hidden(ColumnElement[Any]):
    """A column for a condition that is only looked at in rows which were found by their keys. PostgreSQL would else
    take a short index whose predicate the condition implies, or one whose first column it names, and walk that."""

    inherit_cache = False

    def __init__(self, column: Any) -> None:
        self.column = column
        self.type = column.type


@compiles(Hidden)
def _plain(element: Hidden, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.column, **kw))


@compiles(Hidden, "postgresql")
def _wrapped(element: Hidden, compiler: Any, **kw: Any) -> str:
    column = compiler.process(element.column, **kw)
    return f"coalesce({column}, {column})"


ONE: Any = sa.literal_column("1")


def any_of(query: Any) -> Any:
    """Something that is not NULL when the query finds a row: looked up for each row that asks, by index, where
    PostgreSQL would read all that EXISTS might find into a table of its own."""
    return query.limit(ONE).scalar_subquery()


class Oldest(ColumnElement[bool]):
    """Whether a row is one of `take` that fulfil a condition: found by key, or by where the server keeps it."""

    inherit_cache = False
    type = sa.Boolean()
    _is_implicitly_boolean = True

    def __init__(self, table: sa.Table, condition: Any) -> None:
        key = table.primary_key.columns
        self.names: Any = sa.tuple_(*key)
        self.keys: Any = sa.select(*key).where(condition).limit(param("take")).scalar_subquery()
        places: Any = sa.select(sa.literal_column(f"{table.name}.ctid")).select_from(table)
        self.place: Any = sa.literal_column(f"{table.name}.ctid")
        self.places = places.where(condition).limit(param("take")).scalar_subquery()


@compiles(Oldest)
def _keys_in(element: Oldest, compiler: Any, **kw: Any) -> str:
    return f"{compiler.process(element.names, **kw)} IN {compiler.process(element.keys, **kw)}"


@compiles(Oldest, "postgresql")
def _places_in(element: Oldest, compiler: Any, **kw: Any) -> str:
    return f"{compiler.process(element.place, **kw)} = ANY(ARRAY{compiler.process(element.places, **kw)})"


class Greatest(ColumnElement[int]):
    """The larger of two."""

    inherit_cache = False
    type = sa.BigInteger()

    def __init__(self, left: Any, right: Any) -> None:
        self.pair = (left, right)


@compiles(Greatest)
def _max(element: Greatest, compiler: Any, **kw: Any) -> str:
    return f"max({', '.join(compiler.process(one, **kw) for one in element.pair)})"


@compiles(Greatest, "postgresql")
def _greatest(element: Greatest, compiler: Any, **kw: Any) -> str:
    return f"greatest({', '.join(compiler.process(one, **kw) for one in element.pair)})"


class NextSeq(ColumnElement[int]):
    """The next place in the order of all intents: a parameter on SQLite, a sequence on PostgreSQL."""

    inherit_cache = False
    type = sa.BigInteger()

    def __init__(self, name: str = "seq") -> None:
        self.name = name


@compiles(NextSeq)
def _given_seq(element: NextSeq, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(sa.bindparam(element.name, type_=sa.BigInteger()), **kw))


@compiles(NextSeq, "postgresql")
def _next_seq(_: NextSeq, _compiler: Any, **_kw: Any) -> str:
    return f"nextval('{SEQUENCE}')"
