"""What a real server says, in the kernel's words: which fault is whose, and which transaction is run again."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import anyio
import asyncpg
import pytest
import sqlalchemy as sa
from asyncpg import exceptions as pg

from kernel import AlreadyExists, Invalid, StorageUnavailable
from kernel.testing.postgres import Server
from plugins.storage import migrations
from plugins.storage.postgres.connecting import Connection, Target, connect
from plugins.storage.postgres.dsn import parsed
from plugins.storage.postgres.engine import engine_to
from plugins.storage.postgres.faults import FAULTS, Unreachable, repeatable, translated, why

pytestmark = pytest.mark.anyio
NODE = str(uuid.uuid4())
PROJECT = "INSERT INTO projects (id, name, slug, created, updated) VALUES ($1, 'n', $2, now(), now())"
AGENT = "INSERT INTO agents (id, slug, name, project_id, created, updated) VALUES ($1, 's', 'n', $2, now(), now())"
BROKER = "INSERT INTO runtime_brokers (id, name, slug, created, updated) VALUES ($1, $2, $3, now(), now())"
USER = "INSERT INTO users (id, email, display_name, created) VALUES ($1, 'a@b', 'a', now())"


@pytest.fixture
def target(every_postgres_dsn: str) -> Target:
    return Target(dsn=every_postgres_dsn)


@pytest.fixture
async def connection(target: Target) -> AsyncIterator[Connection]:
    engine = engine_to(target, "migrate", NODE)
    async with engine.begin() as made:
        await made.run_sync(migrations.upgrade)
    await engine.dispose()
    connection = await connect(target, "pool", NODE)
    yield connection
    connection.terminate()


def new() -> str:
    return str(uuid.uuid4())


async def told(connection: Connection, statement: str, *values: object) -> BaseException | None:
    try:
        await connection.execute(statement, *values)
    except FAULTS as fault:
        return translated(fault)
    raise AssertionError("nothing was refused")


async def test_a_name_that_is_taken_is_told_as_such(connection: Connection) -> None:
    project = new()
    await connection.execute(PROJECT, project, "one")
    await connection.execute(AGENT, new(), project)
    await connection.execute(BROKER, new(), "Name", "name")
    await connection.execute(USER, new())
    for statement, values, words in (
        (PROJECT, (new(), "one"), "a project of this name exists already"),
        (PROJECT, (project, "two"), "something with this name or id exists already"),
        (AGENT, (new(), project), "an agent of this name exists in this project already"),
        (BROKER, (new(), "Name", "other"), "a broker of this name exists already"),
        (BROKER, (new(), "NAME", "name"), "differs in capitals"),
        (USER, (new(),), "a user with this address exists already"),
    ):
        refused = await told(connection, statement, *values)
        assert isinstance(refused, AlreadyExists), statement
        assert words in refused.message
        assert "choose another" in refused.message


async def test_a_reference_to_nothing_is_invalid(connection: Connection) -> None:
    refused = await told(connection, AGENT, new(), new())
    assert isinstance(refused, Invalid)
    assert "names something that does not exist" in refused.message


WRONG: list[tuple[str, object]] = [
    ("SELECT $1::text", "nul\0"),
    ("SELECT $1::text", "\ud800"),
    ("SELECT $1::uuid", "nonsense"),
    ("SELECT $1::int8", 2**70),
    ("SELECT $1::int4", "five"),
    ("SELECT $1::jsonb", "no json"),
    ("SELECT $1::jsonb", "[" * 100_000 + "]" * 100_000),
    ("SELECT $1::timestamptz", 2**80),
    ("INSERT INTO projects (id) VALUES ($1)", str(uuid.uuid4())),
]


async def test_a_value_that_cannot_be_stored_is_invalid(connection: Connection) -> None:
    for statement, value in WRONG:
        refused = await told(connection, statement, value)
        assert isinstance(refused, Invalid), (statement, refused)
        assert "\n" not in refused.message
        assert await connection.fetchval("SELECT 1") == 1, "the connection is as good as before"


async def test_a_transaction_that_met_another_is_run_again(target: Target, connection: Connection) -> None:
    await connection.execute(PROJECT, new(), "one")
    other = await connect(target, "pool", NODE)
    try:
        for one in (connection, other):
            await one.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
            await one.fetchval("SELECT count(*) FROM projects")
        await connection.execute("UPDATE projects SET name = 'a'")
        await connection.execute("COMMIT")
        with pytest.raises(pg.SerializationError) as met:
            await other.execute("UPDATE projects SET name = 'b'")
        assert repeatable(met.value)
    finally:
        other.terminate()


async def test_a_statement_whose_table_changed_under_it_is_run_again(target: Target, connection: Connection) -> None:
    query = "SELECT * FROM counted"
    await connection.execute("CREATE TABLE counted (n int)")
    await connection.fetch(query)
    other = await connect(target, "pool", NODE)
    await other.execute("ALTER TABLE counted ADD COLUMN m int")
    other.terminate()
    await connection.execute("BEGIN")
    with pytest.raises(pg.InvalidCachedStatementError) as stale:
        await connection.fetch(query)
    assert repeatable(stale.value)


async def test_sqlalchemys_wrapping_hides_nothing(target: Target, connection: Connection) -> None:
    engine = engine_to(target, "sql", NODE)
    try:
        async with engine.connect() as made:
            with pytest.raises(sa.exc.DBAPIError) as wrapped:
                await made.execute(sa.text(AGENT.replace("$1", f"'{new()}'").replace("$2", f"'{new()}'")))
        assert isinstance(translated(wrapped.value), Invalid)
        assert not repeatable(wrapped.value)
        async with engine.connect() as made:
            with pytest.raises(sa.exc.DBAPIError) as wrapped:
                await made.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40001'; END $$"))
        assert repeatable(wrapped.value)
    finally:
        await engine.dispose()


async def test_a_server_that_goes_away_is_unavailable(tmp_path: object) -> None:
    with Server() as server:
        target = Target(dsn=server.dsn(), deadline=1.0)
        ended = await connect(target, "pool", NODE)
        server.terminate("pointsman-pool%")
        refused = await told(ended, "SELECT 1")
        assert isinstance(refused, StorageUnavailable)
        standing = await connect(target, "pool", NODE)
        server.freeze()
        refused = await told(standing, "SELECT 1")
        assert isinstance(refused, StorageUnavailable)
        assert "longer than" in refused.message or "no answer within" in refused.message
        standing.terminate()
        server.thaw()
        server.stop("immediate")
        with pytest.raises(Unreachable, match="nothing listens there"):
            await connect(target, "pool", NODE)
        await anyio.sleep(0)


async def test_a_primary_that_became_read_only_is_unavailable(connection: Connection) -> None:
    await connection.execute("SET default_transaction_read_only = on")
    refused = await told(connection, PROJECT, new(), "one")
    assert isinstance(refused, StorageUnavailable)
    assert "takes no writes" in refused.message


async def test_every_fault_of_every_host_is_told_without_the_password() -> None:
    dsn = parsed("postgresql://hub:s3cr3t@one:1,two:2/hub")
    faults = (ConnectionRefusedError(111, "refused"), asyncpg.TooManyConnectionsError("sorry, too many clients"))
    whole = Unreachable(dsn, list(zip(dsn.addresses, faults, strict=True)))
    assert "one:1: nothing listens there" in whole.message
    assert "two:2: the server has no connection left" in whole.message
    assert "s3cr3t" not in whole.message


async def test_other_faults_are_left_as_they_are() -> None:
    fault = RuntimeError("not ours")
    assert translated(fault) is fault
    assert translated(None) is None
    assert why(TimeoutError()) == "no answer within server.database_deadline"
