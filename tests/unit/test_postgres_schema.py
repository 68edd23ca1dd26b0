"""The schema on real servers, the oldest and the newest: what the migrations make, and who makes it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.ext.asyncio import AsyncConnection

from kernel import Misconfigured
from plugins.storage import migrations, schema
from plugins.storage.postgres.budget import Budget
from plugins.storage.postgres.connecting import Target, connect
from plugins.storage.postgres.engine import engine_to
from plugins.storage.postgres.opening import LOCK, ready, schema_of

pytestmark = pytest.mark.anyio
SMALL = Budget(pool=2)
INDEXES = (
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename <> 'alembic_version'"
)
OPTIONS = (
    "SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL AND relkind = 'r' AND relname !~ '^pg_'"
)
STATES = (
    "SELECT count(*) FROM broker_dispatch WHERE ended_at IS NULL "
    "UNION ALL SELECT count(*) FROM messages WHERE ended_at IS NULL AND seq IS NOT NULL"
)
HISTORY = """
INSERT INTO projects (id, name, slug, created, updated) VALUES ('{project}', 'p', 'p', now(), now());
INSERT INTO broker_dispatch (id, broker_id, agent_id, agent_slug, project_id, op, state, seq, deadline_at, route,
  principal, request_id, node_id, created_at, ended_at)
  SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'a', '{project}', 'start', state,
    nextval('dispatch_seq'), now(), 'forward', 'user', 'r', gen_random_uuid(), now(), now()
  FROM unnest(ARRAY['done', 'failed', 'expired', 'cancelled']) AS state;
INSERT INTO messages (id, project_id, sender, recipient, msg, dispatch_state, seq, created, ended_at)
  SELECT gen_random_uuid(), '{project}', 's', 'r', 'm', state, nextval('dispatch_seq'), now(), now()
  FROM unnest(ARRAY['done', 'failed', 'expired', 'cancelled']) AS state;
INSERT INTO messages (id, project_id, sender, recipient, msg, created, ended_at)
  VALUES (gen_random_uuid(), '{project}', 's', 'r', 'to a user', now(), now());
"""


def new() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def target(every_postgres_dsn: str) -> Target:
    return Target(dsn=every_postgres_dsn)


@asynccontextmanager
async def joined(target: Target) -> AsyncIterator[AsyncConnection]:
    engine = engine_to(target, "migrate", new())
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def rows(connection: AsyncConnection, statement: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.execute(sa.text(statement))]


def upgraded(to: str) -> Callable[[sa.Connection], None]:
    return lambda connection: command.upgrade(migrations._config(connection), to)


async def test_migrations_make_what_the_metadata_says(target: Target) -> None:
    async with joined(target) as connection:
        await connection.run_sync(migrations.upgrade)
        assert await connection.run_sync(migrations.drift) == []
        made = sorted(await rows(connection, INDEXES)), sorted(await rows(connection, OPTIONS))
        await connection.rollback()
        await connection.run_sync(schema.metadata.create_all)
        wanted = sorted(await rows(connection, INDEXES)), sorted(await rows(connection, OPTIONS))
        counters = {name for name, _ in wanted[0]} - {name for name, _ in made[0]}
    assert counters == {"pk_counters"}
    assert made[0] == [index for index in wanted[0] if index[0] not in counters]
    assert made[1] == wanted[1]
    assert {name for name, _ in made[1]} >= {"broker_dispatch", "messages"}


async def test_drift_is_noticed(target: Target) -> None:
    async with joined(target) as connection:
        await connection.run_sync(migrations.upgrade)
        await connection.execute(sa.text("ALTER TABLE agents ALTER COLUMN created TYPE text"))
        assert await connection.run_sync(migrations.drift) != []


async def test_both_tables_of_intents_are_numbered_by_one_sequence(target: Target) -> None:
    async with joined(target) as connection:
        await connection.run_sync(migrations.upgrade)
        sequences = await rows(connection, "SELECT sequencename FROM pg_sequences")
        tables = {
            name for (name,) in await rows(connection, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        }
    assert sequences == [(schema.SEQUENCE,)]
    assert "counters" not in tables


async def test_history_is_not_pending_after_any_migration(target: Target) -> None:
    async with joined(target) as connection:
        await connection.run_sync(upgraded("0001"))
        for statement in HISTORY.format(project=new()).split(";")[:-1]:
            await connection.execute(sa.text(statement))
        await connection.run_sync(migrations.upgrade)
        assert await rows(connection, STATES) == [(0,), (0,)]
        assert await rows(connection, "SELECT count(*) FROM messages WHERE dispatch_state = 'none'") == [(1,)]


async def test_schema_is_told_before_and_after(target: Target) -> None:
    assert (await schema_of(target)).found is None
    await ready(target, new(), SMALL)
    state = await schema_of(target)
    assert (state.found, state.known) == (migrations.head(), True)


async def test_hubs_that_start_together_migrate_once(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plugins.storage.postgres.opening")
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ready, target, new(), SMALL)
    assert [record.message for record in caplog.records].count(
        f"migrating the database from schema none to {migrations.head()}"
    ) == 1


async def test_hub_waits_while_another_migrates(target: Target) -> None:
    other = await connect(target, "migrate", new())
    try:
        await other.execute("BEGIN")
        await other.fetchval("SELECT pg_advisory_xact_lock($1)", LOCK)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ready, target, new(), SMALL)
            await _somebody_waits(target)
            assert (await schema_of(target)).found is None
            await other.execute("COMMIT")
    finally:
        other.terminate()
    assert (await schema_of(target)).found == migrations.head()


async def _somebody_waits(target: Target) -> None:
    watcher = await connect(target, "test", new())
    try:
        with anyio.fail_after(30):
            while not await watcher.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                await anyio.sleep(0.02)
    finally:
        watcher.terminate()


async def test_migration_that_fails_leaves_nothing_behind(target: Target) -> None:
    connection = await connect(target, "test", new())
    await connection.execute("CREATE TABLE transitions (mine int)")
    with pytest.raises(Misconfigured, match="transitions"):
        await ready(target, new(), SMALL)
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    connection.terminate()
    assert [row[0] for row in tables] == ["transitions"]
