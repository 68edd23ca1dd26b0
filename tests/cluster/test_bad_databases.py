"""Every database that a hub cannot use: the start ends with 78 and one sentence, and doctor tells it beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from kernel.credentials import seal_secret
from kernel.keyring import Keyring
from kernel.testing.postgres import Server, find
from plugins.storage.postgres.budget import Budget
from tests.harness.certificates import Authority
from tests.harness.cluster import Cluster, config
from tests.harness.hubprocess import HubProcess
from tests.harness.pooler import Pooler
from tests.harness.processes import ROOT, eventually

CONFIG = ROOT / "conf" / "postgres.yaml"
POINTSMAN = Path(sys.executable).with_name("pointsman")
SECRET = "0123456789abcdef0123456789abcdef"
FIRST = ["--set", "plugins.postgres.patience=1s"]
"""What is not there yet is not waited for any longer."""
MISSING = ""
"""In the place of a DSN: none is given."""


class Bad(NamedTuple):
    """How a database is bad."""

    dsn: str
    sets: tuple[str, ...] = ()
    secret: str | None = SECRET


def run(directory: Path, command: str, bad: Bad, *more: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "POINTSMAN", "SESSION"))}
    given = {"POINTSMAN_DSN": bad.dsn or None, "SESSION_SECRET": bad.secret}
    sets = [part for one in bad.sets for part in ("--set", one)]
    return subprocess.run(
        [str(POINTSMAN), *command.split(), "--config", str(CONFIG), *FIRST, *sets, *more],
        cwd=directory,
        env={**known, **{name: value for name, value in given.items() if value is not None}},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def told_by_doctor(directory: Path, bad: Bad) -> tuple[int, list[dict[str, Any]]]:
    done = run(directory, "doctor", bad, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def refuses(directory: Path, bad: Bad, *words: str) -> None:
    """The start and doctor say the same, with each of these words."""
    with ThreadPoolExecutor() as both:
        starting = both.submit(run, directory, "serve", bad, "--port", "0")
        status, findings = both.submit(told_by_doctor, directory, bad).result()
        started = starting.result()
    failed = [finding for finding in findings if finding["level"] == "fail"]
    doctor = " | ".join(f"{finding['told']}: {finding['fix']}" for finding in failed)
    lines = [line for line in started.stderr.splitlines() if line.startswith("error: ")]
    assert (status, started.returncode) == (78, 78), (doctor, started.stderr)
    assert len(lines) == 1, started.stderr
    for word in words:
        assert word in doctor, (word, doctor)
        assert word in lines[0], (word, lines[0])
    assert "Traceback" not in started.stderr


# -- servers and databases that are bad ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """One that wants passwords, and has few connections."""
    with Server(password="right", settings={"max_connections": "15"}) as server:
        yield server


@pytest.fixture(scope="module")
def standby(postgres: Server) -> Iterator[Server]:
    """A read-only copy of the shared server."""
    with postgres.standby() as server:
        yield server


@pytest.fixture
def migrated(postgres: Server, postgres_dsn: str, tmp_path: Path) -> str:
    done = run(tmp_path, "db migrate", Bad(postgres_dsn))
    assert done.returncode == 0, done.stderr
    return postgres_dsn


@pytest.fixture
def stranger(postgres: Server) -> Iterator[str]:
    """A role with no rights but to log in."""
    name = f"stranger_{uuid.uuid4().hex[:8]}"
    postgres.sql(f"create role {name} login")
    yield name
    postgres.sql(f"drop owned by {name}; drop role {name}")


def database_of(dsn: str) -> str:
    return dsn.rpartition("/")[2]


# -- what is wrong with the configuration --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "words"),
    [
        (MISSING, ("POINTSMAN_DSN", "not set")),
        ("host=db dbname=hub", ("does not begin with postgresql://",)),
        ("postgresql://hub:secret@/hub", ("names no host",)),
        ("postgresql://hub:a#b@db/hub", ("%23",)),
    ],
)
def test_dsn_that_cannot_be_read(tmp_path: Path, dsn: str, words: tuple[str, ...]) -> None:
    refuses(tmp_path, Bad(dsn), *words)


def test_cache_of_less_than_no_statement(tmp_path: Path) -> None:
    bad = Bad("postgresql://hub@127.0.0.1:9/hub", ("plugins.postgres.statement_cache_size=-1",))
    refuses(tmp_path, bad, "plugins.postgres.statement_cache_size", "found -1")


@pytest.mark.parametrize(("secret", "told"), [(None, "SESSION_SECRET is not set"), ("short", "has 5 characters")])
def test_hubs_that_share_a_database_need_a_secret(
    tmp_path: Path, postgres_dsn: str, secret: str | None, told: str
) -> None:
    refuses(tmp_path, Bad(postgres_dsn, secret=secret), told, "openssl rand -hex 32")


# -- who does not answer, or does not let a hub in -----------------------------------------------------------


def test_unknown_host(tmp_path: Path) -> None:
    refuses(tmp_path, Bad("postgresql://hub@no-such-host.invalid/hub"), "no such host is known", "correct `dsn`")


def test_port_where_nothing_listens(tmp_path: Path) -> None:
    refuses(tmp_path, Bad("postgresql://hub@127.0.0.1:9/hub"), "nothing listens there", "start it")


def test_wrong_password(tmp_path: Path, guarded: Server) -> None:
    dsn = guarded.dsn(password="wrong-one")
    refuses(tmp_path, Bad(dsn), "the password is wrong", "correct the password in `dsn`")
    assert "wrong-one" not in run(tmp_path, "serve", Bad(dsn), "--port", "0").stderr


def test_missing_password(tmp_path: Path, guarded: Server) -> None:
    refuses(tmp_path, Bad(f"postgresql://postgres@127.0.0.1:{guarded.port}/postgres"), "password", "`dsn`")


def test_missing_role(tmp_path: Path, postgres: Server) -> None:
    refuses(tmp_path, Bad(postgres.dsn(user="nobody-at-all")), "nobody-at-all", "create the role")


def test_missing_database(tmp_path: Path, postgres: Server) -> None:
    refuses(tmp_path, Bad(postgres.dsn("not-made")), "there is no such database", 'CREATE DATABASE "not-made"')


def test_role_that_may_not_connect(tmp_path: Path, postgres: Server, postgres_dsn: str, stranger: str) -> None:
    name = database_of(postgres_dsn)
    postgres.sql(f'revoke connect on database "{name}" from public')
    refuses(tmp_path, Bad(postgres.dsn(name, user=stranger)), "GRANT CONNECT ON DATABASE")


def test_parameter_that_the_server_does_not_know(tmp_path: Path, postgres_dsn: str) -> None:
    refuses(tmp_path, Bad(f"{postgres_dsn}?max_conns=5"), "max_conns", "leave that parameter out")


def test_server_without_tls(tmp_path: Path, postgres_dsn: str) -> None:
    refuses(tmp_path, Bad(f"{postgres_dsn}?sslmode=require"), "turn TLS on at the server")


def test_certificate_of_an_authority_that_is_not_trusted(tmp_path: Path) -> None:
    with Server(find(17), tls=Authority(tmp_path).server()) as server:
        stranger = Authority(tmp_path, "stranger")
        dsn = server.dsn(sslmode="verify-full", sslrootcert=str(stranger.certificate))
        refuses(tmp_path, Bad(dsn), "its certificate is not trusted", "sslrootcert=FILE")


def test_certificate_file_that_is_not_there(tmp_path: Path, postgres_dsn: str) -> None:
    """It is no server that may yet come, so it is not waited for."""
    patient = ("plugins.postgres.patience=10m",)
    dsn = f"{postgres_dsn}?sslmode=verify-full&sslrootcert=/nowhere/ca.pem"
    refuses(tmp_path, Bad(dsn, patient), "let the hub read the files that sslrootcert names", "`dsn`")


# -- a server that is not the right one ----------------------------------------------------------------------


def test_read_only_standby(tmp_path: Path, standby: Server) -> None:
    refuses(tmp_path, Bad(standby.dsn()), "read-only standby", "name the primary")


def test_user_for_whom_everything_is_read_only(
    tmp_path: Path, postgres: Server, postgres_dsn: str, stranger: str
) -> None:
    postgres.sql(f"alter role {stranger} set default_transaction_read_only = on")
    bad = Bad(postgres.dsn(database_of(postgres_dsn), user=stranger))
    refuses(tmp_path, bad, "default_transaction_read_only is on", f"ALTER ROLE {stranger} SET")


def test_standby_is_refused_even_if_the_dsn_would_take_it(tmp_path: Path, standby: Server) -> None:
    refuses(tmp_path, Bad(standby.dsn(target_session_attrs="any")), "read-only standby", "name the primary")


def test_text_in_another_encoding(tmp_path: Path, postgres: Server) -> None:
    name = f"latin_{uuid.uuid4().hex[:8]}"
    postgres.sql(f"create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
    try:
        refuses(tmp_path, Bad(postgres.dsn(name)), "stores text as LATIN1", "ENCODING 'UTF8'")
    finally:
        postgres.drop_database(name)


def test_server_with_too_few_connections(tmp_path: Path, guarded: Server) -> None:
    needed = f"{Budget(pool=20).needed} connections a hub"
    refuses(tmp_path, Bad(guarded.dsn()), "not one hub fits", needed, "the server has 15", "lower storage.pool_max")


def test_role_with_too_few_connections(tmp_path: Path, postgres: Server, postgres_dsn: str, stranger: str) -> None:
    postgres.sql(f"alter role {stranger} connection limit 8")
    refuses(tmp_path, Bad(postgres.dsn(database_of(postgres_dsn), user=stranger)), "not one hub fits", "have 8")


# -- rights and schemas --------------------------------------------------------------------------------------


def test_role_that_may_not_make_tables(tmp_path: Path, postgres: Server, postgres_dsn: str, stranger: str) -> None:
    name = database_of(postgres_dsn)
    postgres.sql("revoke create on schema public from public", name)
    refuses(
        tmp_path,
        Bad(postgres.dsn(name, user=stranger)),
        f"the user {stranger} may not create tables in schema public",
        f"GRANT CREATE ON SCHEMA public TO {stranger}",
    )


def test_role_that_may_not_write_the_tables(tmp_path: Path, postgres: Server, migrated: str, stranger: str) -> None:
    bad = Bad(postgres.dsn(database_of(migrated), user=stranger))
    refuses(tmp_path, bad, f"the user {stranger} may not read and write", "GRANT SELECT, INSERT, UPDATE, DELETE")


def test_role_that_may_not_use_the_sequence(tmp_path: Path, postgres: Server, migrated: str, stranger: str) -> None:
    """Every call is numbered from it: such a hub would be ready, and could record nothing."""
    name = database_of(migrated)
    postgres.sql("grant select, insert, update, delete on all tables in schema public to public", name)
    refuses(tmp_path, Bad(postgres.dsn(name, user=stranger)), "may not read and write", "GRANT USAGE ON ALL SEQUENCES")


def test_tables_of_another_program(tmp_path: Path, postgres: Server, postgres_dsn: str) -> None:
    postgres.sql("create table projects (deadline date)", database_of(postgres_dsn))
    refuses(tmp_path, Bad(postgres_dsn), "tables of another program", "projects", "a database of their own")


def test_search_path_that_leads_nowhere(tmp_path: Path, postgres_dsn: str) -> None:
    refuses(tmp_path, Bad(f"{postgres_dsn}?search_path=nowhere"), "no schema of the search path", "that of the DSN")


def test_two_versions_of_the_schema_at_once(tmp_path: Path, postgres: Server, migrated: str) -> None:
    postgres.sql("insert into alembic_version values ('0001')", database_of(migrated))
    refuses(tmp_path, Bad(migrated), "alembic_version names the schemas", "delete the row")


def test_role_without_a_schema(tmp_path: Path, postgres: Server, postgres_dsn: str, stranger: str) -> None:
    name = database_of(postgres_dsn)
    postgres.sql("revoke usage on schema public from public", name)
    refuses(tmp_path, Bad(postgres.dsn(name, user=stranger)), "no schema of the search path", "GRANT USAGE, CREATE")


def test_schema_of_a_later_version(tmp_path: Path, postgres: Server, migrated: str) -> None:
    postgres.sql("update alembic_version set version_num = '9999'", database_of(migrated))
    refuses(tmp_path, Bad(migrated), "schema 9999", "newer than this program", "start the version that wrote it")
    checked = run(tmp_path, "db check", Bad(migrated))
    assert (checked.returncode, "9999" in checked.stdout) == (78, True)


def test_hub_with_another_secret_than_the_others(tmp_path: Path, postgres: Server, migrated: str) -> None:
    """It could open nothing that they sealed, and would refuse every broker."""
    broker = str(uuid.uuid4())
    sealed = seal_secret(Keyring(SECRET[::-1]), b"s" * 32, broker, "key")
    postgres.sql(
        f"insert into runtime_brokers (id, name, slug, created, updated) values ('{broker}', 'b', 'b', now(), now());"
        f"insert into broker_secrets (broker_id, key_id, sealed, created) "
        f"values ('{broker}', 'key', '\\x{sealed.hex()}', now())",
        database_of(migrated),
    )
    refuses(tmp_path, Bad(migrated), "another SESSION_SECRET", "start with that one")


# -- poolers -------------------------------------------------------------------------------------------------


@pytest.fixture
def pooler(postgres: Server) -> Iterator[Pooler]:
    with Pooler(postgres.port) as pooler:
        yield pooler


def test_pooler_that_nobody_told_of(tmp_path: Path, postgres_dsn: str, pooler: Pooler) -> None:
    bad = Bad(pooler.dsn(database_of(postgres_dsn)))
    refuses(tmp_path, bad, "a pooler that refuses settings", "statement_cache_size: 0", "listen_dsn")


def test_listener_through_a_pooler(tmp_path: Path, postgres_dsn: str, pooler: Pooler) -> None:
    bad = Bad(pooler.dsn(database_of(postgres_dsn)), ("plugins.postgres.statement_cache_size=0",))
    refuses(tmp_path, bad, "leads through a pooler that loses LISTEN", "`listen_dsn`", "to the server itself")


def test_listen_dsn_that_is_a_pooler(tmp_path: Path, postgres_dsn: str, pooler: Pooler) -> None:
    listen = f"plugins.postgres.listen_dsn={pooler.dsn(database_of(postgres_dsn))}"
    refuses(tmp_path, Bad(postgres_dsn, (listen,)), "pooler", "`listen_dsn` of the plugin postgres lead to the server")


def test_listen_dsn_that_cannot_be_read(tmp_path: Path) -> None:
    listen = "plugins.postgres.listen_dsn=db.internal"
    refuses(tmp_path, Bad("postgresql://hub@127.0.0.1:9/hub", (listen,)), "`listen_dsn` of the plugin postgres cannot")


def test_listen_dsn_of_another_database(tmp_path: Path, postgres: Server, postgres_dsn: str) -> None:
    bad = Bad(postgres_dsn, (f"plugins.postgres.listen_dsn={postgres.dsn()}",))
    refuses(tmp_path, bad, "is not heard over `listen_dsn`", "lead to the same database")
    tables = postgres.sql("select count(*) from pg_tables where schemaname = 'public'")
    assert tables == [["0"]], "nothing was migrated there"


# -- and what is good ----------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_with_a_good_one(tmp_path: Path, every_postgres_dsn: str) -> None:
    before = told_by_doctor(tmp_path, Bad(every_postgres_dsn))
    assert run(tmp_path, "db migrate", Bad(every_postgres_dsn)).returncode == 0
    after = told_by_doctor(tmp_path, Bad(every_postgres_dsn))
    for status, findings in (before, after):
        assert (status, [one for one in findings if one["level"] == "fail"]) == (0, [])
    looked = {finding["check"] for finding in after[1]}
    wanted = {"configuration", "plugins", "secret", "database", "version", "encoding", "writes", "pooler", "listen"}
    assert wanted | {"rights", "connections", "clock", "schema", "migration", "hubs", "brokers", "hub"} <= looked
    assert "none yet" in next(one["told"] for one in before[1] if one["check"] == "schema")


def test_doctor_changes_nothing(tmp_path: Path, postgres: Server, postgres_dsn: str) -> None:
    told_by_doctor(tmp_path, Bad(postgres_dsn))
    assert postgres.sql("select count(*) from pg_tables where schemaname = 'public'", database_of(postgres_dsn)) == [
        ["0"]
    ]
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_of_brokers_that_share_an_identity_and_of_silent_hubs(
    tmp_path: Path, postgres: Server, migrated: str
) -> None:
    name = database_of(migrated)
    postgres.sql(
        "insert into runtime_brokers (id, name, slug, conflict, created, updated) "
        "values (gen_random_uuid(), 'twin', 'twin', true, now(), now());"
        "insert into hub_nodes (id, started_at, beat_at, version) "
        "values (gen_random_uuid(), now(), now() - interval '1 hour', '0')",
        name,
    )
    status, findings = told_by_doctor(tmp_path, Bad(migrated))
    warned = {finding["check"]: finding["told"] for finding in findings if finding["level"] == "warn"}
    assert status == 0
    assert "twin" in warned["brokers"]
    assert "1 went silent" in warned["hubs"]


@pytest.mark.anyio
async def test_start_waits_for_a_server_that_comes_later(tmp_path: Path) -> None:
    with Server() as server:
        given = {"POINTSMAN_DSN": server.dsn(), "SESSION_SECRET": SECRET}
        server.stop()
        hub = HubProcess(tmp_path, config=config(), settings={"plugins.postgres.patience": "60s"}, env=given)

        async def waits() -> bool:
            return hub.child is not None and "waiting up to" in hub.log

        async with AsyncExitStack() as stack:
            stack.push_async_exit(hub)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hub.start)
                await eventually(waits, "a hub that waits for its database")
                server.start()
            assert hub.alive


@pytest.mark.anyio
async def test_five_hubs_start_at_once_on_an_empty_database(tmp_path: Path, every_postgres_dsn: str) -> None:
    async with Cluster(tmp_path, every_postgres_dsn, hubs=5, settings={"storage.pool_max": "4"}) as cluster:
        migrated = [hub for hub in cluster if "migrating the database from schema none" in hub.log]
        assert len(migrated) == 1
        for hub in cluster:
            assert f"connections: {Budget(pool=4).needed} connections a hub" in hub.log
