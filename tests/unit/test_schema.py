"""The schema: one metadata for both dialects, no drift from the migrations, values that are storable as they are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from plugins.storage import migrations, schema
from plugins.storage.sqlite.files import Joined
from plugins.storage.sqlite.sql import engine_on

SQLITE: Dialect = sa.create_engine("sqlite://").dialect
POSTGRES: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
PRINCIPALS = {"created_by", "owner_id", "linked_by", "principal", "sender_id", "recipient_id", "user_id"}
WANTED = {
    "agents",
    "broker_dispatch",
    "broker_join_tokens",
    "broker_secrets",
    "hub_nodes",
    "idempotency_keys",
    "messages",
    "nonces",
    "project_contributors",
    "projects",
    "runtime_brokers",
    "transitions",
    "user_access_tokens",
    "users",
}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None, factory=Joined)
    connection.execute("PRAGMA foreign_keys = ON")
    yield connection
    connection.close()


@pytest.fixture
def migrated(connection: sqlite3.Connection) -> sqlite3.Connection:
    with engine_on(connection).connect() as joined:
        migrations.upgrade(joined)
    return connection


def test_migrations_make_what_the_metadata_says(migrated: sqlite3.Connection) -> None:
    with engine_on(migrated).connect() as joined:
        assert migrations.drift(joined) == []
        assert migrations.current(joined) == migrations.head()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE agents ADD COLUMN extra TEXT",
        "ALTER TABLE agents DROP COLUMN image",
        "DROP INDEX ix_messages_unfinished",
        "DROP TABLE nonces",
    ],
)
def test_a_drift_is_noticed(migrated: sqlite3.Connection, change: str) -> None:
    migrated.execute(change)
    with engine_on(migrated).connect() as joined:
        assert migrations.drift(joined) != []


def test_partial_indexes_are_those_of_the_metadata(
    migrated: sqlite3.Connection, connection: sqlite3.Connection
) -> None:
    """The comparison of alembic does not look at an index's predicate."""
    other = sa.create_engine("sqlite://")
    schema.metadata.create_all(other)
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND name NOT LIKE 'alembic%'"
    with other.connect() as joined:
        expected = dict(tuple(row) for row in joined.execute(sa.text(query)))
    other.dispose()
    assert dict(migrated.execute(query).fetchall()) == expected


def test_migrating_twice_changes_nothing(migrated: sqlite3.Connection) -> None:
    before = migrated.execute("PRAGMA schema_version").fetchone()
    with engine_on(migrated).connect() as joined:
        migrations.upgrade(joined)
    assert migrated.execute("PRAGMA schema_version").fetchone() == before


def test_the_tables_are_those_of_the_design() -> None:
    assert set(schema.metadata.tables) == WANTED | {"counters", "eras"}


def test_every_table_is_strict(migrated: sqlite3.Connection) -> None:
    rows = migrated.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'alembic%'")
    assert {name for name, sql in rows if "STRICT" not in sql.rpartition(")")[2]} == set()


def test_both_dialects_know_every_table_and_index() -> None:
    for table in schema.metadata.sorted_tables:
        text = str(CreateTable(table).compile(dialect=POSTGRES))
        assert "id UUID" in text or "_id UUID" in text or table.name in ("idempotency_keys", "counters")
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=POSTGRES))


def test_principals_have_no_foreign_key() -> None:
    for table in schema.metadata.tables.values():
        for column in table.columns:
            if column.name in PRINCIPALS:
                assert not column.foreign_keys, f"{table.name}.{column.name}"


def test_what_was_dropped_stays_dropped() -> None:
    assert "api_keys" not in schema.metadata.tables
    assert "status" not in schema.agents.c
    for column in ("type", "connection_state"):
        assert column not in schema.runtime_brokers.c
    assert "connection_state" not in schema.agents.c


def test_a_new_message_is_not_dispatched_by_default(migrated: sqlite3.Connection) -> None:
    migrated.execute(
        "INSERT INTO messages (id, project_id, sender, recipient, msg, created) VALUES ('m', 'p', 'a', 'b', 'c', 1)"
    )
    assert migrated.execute("SELECT dispatch_state FROM messages").fetchall() == [("none",)]


def test_a_slug_is_unique_among_agents_that_live(migrated: sqlite3.Connection) -> None:
    migrated.execute("INSERT INTO projects (id, name, slug, created, updated) VALUES ('p', 'p', 'p', 1, 1)")
    columns = "id, slug, name, project_id, created, updated, deleted_at"
    insert = f"INSERT INTO agents ({columns}) VALUES (?, 's', 'n', 'p', 1, 1, ?)"
    migrated.execute(insert, ("1", 5))
    migrated.execute(insert, ("2", None))
    with pytest.raises(sqlite3.IntegrityError):
        migrated.execute(insert, ("3", None))


# -- types --------------------------------------------------------------------------------------------------------

VALUES: list[tuple[Any, Any, Any]] = [
    (schema.Id(), "018f0000-0000-7000-8000-000000000001", "018f0000-0000-7000-8000-000000000001"),
    (schema.Instant(), 1_700_000_000_123_456, 1_700_000_000_123_456),
    (schema.Json(), {"ü": [1, None, True]}, '{"ü":[1,null,true]}'),
    (schema.Flag(), True, 1),
    (schema.Count(), 2**60, 2**60),
]


@pytest.mark.parametrize(("type_", "value", "stored"), VALUES)
def test_values_are_stored_on_sqlite_as_they_are(type_: Any, value: Any, stored: Any) -> None:
    bind, result = type_.bind_processor(SQLITE), type_.result_processor(SQLITE, None)
    assert (bind(value) if bind else value) == stored
    assert (result(stored) if result else stored) == value


def test_an_instant_is_its_microseconds_on_both() -> None:
    """Nothing converts it: connections to PostgreSQL are taught to speak it in integers (tests/cluster)."""
    for dialect in (SQLITE, POSTGRES):
        processor: object = schema.Instant().bind_processor(dialect)  # type: ignore[func-returns-value]
        assert processor is None


@pytest.mark.parametrize("type_", [type_ for type_, _, _ in VALUES])
def test_nothing_stays_nothing(type_: Any) -> None:
    for dialect in (SQLITE, POSTGRES):
        bind, result = type_.bind_processor(dialect), type_.result_processor(dialect, None)
        assert (bind(None) if bind else None) is None
        assert (result(None) if result else None) is None
