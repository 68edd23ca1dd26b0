"""Connections to real servers: named, pinned, watched, cheaply given back, and to the host that takes writes."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from kernel.testing.postgres import Server, find
from plugins.storage.postgres.connecting import (
    DEDICATED,
    Connection,
    Pool,
    Target,
    connect,
    open_pool,
    rolled_back,
)
from plugins.storage.postgres.faults import Unreachable
from tests.harness.certificates import Authority
from tests.harness.pooler import Pooler
from tests.harness.proxy import Proxy

pytestmark = pytest.mark.anyio
NODE = "018f0000-0000-7000-8000-000000000001"


@asynccontextmanager
async def connected(target: Target, role: str = "pool", *, listen: bool = False) -> AsyncIterator[Connection]:
    connection = await connect(target, role, NODE, listen=listen)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def pool_of(target: Target, **more: Any) -> AsyncIterator[Pool]:
    options = {"min_size": 1, "max_size": 2, "idle": 60.0, "lifetime": 60.0, **more}
    pool = await open_pool(target, NODE, **options)
    try:
        yield pool
    finally:
        pool.terminate()


@pytest.fixture
def target(every_postgres_dsn: str) -> Target:
    return Target(dsn=every_postgres_dsn)


async def shown(connection: Connection, setting: str) -> str:
    return str(await connection.fetchval("SELECT current_setting($1)", setting))


# -- what a connection is ------------------------------------------------------------------------------------


async def test_connections_carry_role_and_node_in_their_names(target: Target) -> None:
    async with connected(target, "writer") as writer, connected(target, "any", listen=True) as listener:
        assert await shown(writer, "application_name") == f"pointsman-writer:{NODE}"
        assert await shown(listener, "application_name") == f"pointsman-listen:{NODE}"


async def test_plans_are_pinned_on_the_dedicated_connections_alone(target: Target) -> None:
    for role in sorted(DEDICATED):
        async with connected(target, role) as connection:
            assert await shown(connection, "plan_cache_mode") == "force_generic_plan"
            assert await shown(connection, "enable_seqscan") == "off"
    async with connected(target) as connection:
        assert await shown(connection, "plan_cache_mode") == "auto"
        assert await shown(connection, "jit") == "off"


async def test_what_the_dsn_sets_goes_first(every_postgres_dsn: str) -> None:
    async with connected(Target(dsn=f"{every_postgres_dsn}?statement_timeout=1234&enable_seqscan=on"), "owner") as one:
        assert await shown(one, "statement_timeout") == "1234ms"
        assert await shown(one, "enable_seqscan") == "on"


async def test_system_watches_for_a_peer_that_went_silently(target: Target) -> None:
    async with connected(target) as connection:
        transport = connection._transport  # type: ignore[attr-defined]
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as own:
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        assert await shown(connection, "tcp_keepalives_idle") == "5"


async def test_statement_ends_at_the_server_when_its_time_is_over(every_postgres_dsn: str) -> None:
    async with connected(Target(dsn=every_postgres_dsn, deadline=0.3)) as connection:
        with pytest.raises((TimeoutError, asyncpg.QueryCanceledError)):
            await connection.execute("SELECT pg_sleep(30)")


async def test_local_socket_is_dialled(every_postgres: Server) -> None:
    async with connected(Target(dsn=every_postgres.dsn(unix=True))) as connection:
        assert await connection.fetchval("SELECT inet_client_addr() IS NULL")


# -- what values look like -----------------------------------------------------------------------------------

VALUES: list[tuple[str, Any]] = [
    ("timestamptz", 1_795_000_000_123_456),
    ("timestamptz", -1),
    ("timestamptz[]", [0, 946_684_800_000_000]),
    ("uuid", NODE),
    ("uuid[]", [NODE, str(uuid.uuid4())]),
    ("jsonb", '{"a": [1, null, "ü"]}'),
    ("json", '{"b":2}'),
    ("int8", 2**62),
    ("bool", True),
    ("bytea", b"\x00\xff"),
    ("text", "text"),
    ("text[]", ["a", None]),
]


async def test_values_come_back_as_they_went(target: Target) -> None:
    async with connected(target) as connection:
        for type_, value in VALUES:
            assert await connection.fetchval(f"SELECT $1::{type_}", value) == value, type_
            assert await connection.fetchval(f"SELECT $1::{type_}", None) is None, type_


async def test_instants_are_those_of_the_server(target: Target) -> None:
    async with connected(target) as connection:
        assert await connection.fetchval("SELECT to_timestamp(0)") == 0
        assert await connection.fetchval("SELECT extract(epoch FROM $1::timestamptz)::int8", 5_000_000) == 5


JSON = [
    (r'"a\u0000b"', '"a\ufffdb"'),
    (r'"\u0000\u0000"', '"\ufffd\ufffd"'),
    (r'"\\u0000"', r'"\\u0000"'),
    (r'"\\\u0000"', '"\\\\\ufffd"'),
    (r'{"\u0000":1}', '{"\ufffd": 1}'),
]
"""As it is given, and as it is kept."""


async def test_json_that_postgresql_cannot_keep_is_kept_all_the_same(target: Target) -> None:
    async with connected(target) as connection:
        for text, stored in JSON:
            assert await connection.fetchval("SELECT $1::jsonb", text) == stored


async def test_what_is_no_id_is_a_bad_value(target: Target) -> None:
    async with connected(target) as connection:
        for wrong in ("", "nonsense", "018f0000", NODE * 2, 5):
            with pytest.raises(asyncpg.DataError):
                await connection.fetchval("SELECT $1::uuid", wrong)


# -- the pool ------------------------------------------------------------------------------------------------


async def test_connection_is_given_back_without_asking_the_server(target: Target) -> None:
    async with pool_of(target) as pool, connected(target) as other:
        async with pool.acquire(timeout=10) as connection:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
        await anyio.sleep(0.05)
        last = await other.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", pid)
        assert last == "SELECT pg_backend_pid()"


async def test_connection_that_is_old_enough_is_replaced(target: Target) -> None:
    async with pool_of(target, lifetime=0.05) as pool:
        pids = set()
        for _ in range(3):
            async with pool.acquire(timeout=10) as connection:
                pids.add(await connection.fetchval("SELECT pg_backend_pid()"))
                await anyio.sleep(0.06)
        assert len(pids) == 3


async def test_pool_that_is_used_up_does_not_wait_for_ever(target: Target) -> None:
    async with pool_of(target, max_size=1) as pool, pool.acquire(timeout=10):
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.1)


# -- transactions that are broken off ------------------------------------------------------------------------


async def test_cancelled_transaction_is_rolled_back_and_its_connection_used_again(target: Target) -> None:
    async with connected(target) as connection:
        await connection.execute("CREATE TABLE kept (n int)")
        with anyio.move_on_after(0.1):
            await connection.execute("BEGIN")
            try:
                await connection.execute("INSERT INTO kept VALUES (1)")
                await connection.execute("SELECT pg_sleep(30)")
            except BaseException:
                await rolled_back(connection)
                raise
        assert not connection.is_closed()
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0


async def test_connection_whose_end_is_unknown_is_given_up() -> None:
    with Server() as server:
        async with connected(Target(dsn=server.dsn())) as connection:
            await connection.execute("BEGIN")
            server.freeze()
            try:
                started = time.monotonic()
                await rolled_back(connection, within=0.3)
                assert connection.is_closed()
                assert time.monotonic() - started < 10
            finally:
                server.thaw()


# -- hosts ---------------------------------------------------------------------------------------------------


def hosts(server: Server, *ports: int) -> str:
    return f"postgresql://postgres@{','.join(f'127.0.0.1:{port}' for port in ports)}/postgres"


async def test_host_that_refuses_is_passed_over(every_postgres: Server) -> None:
    async with connected(Target(dsn=hosts(every_postgres, 9, every_postgres.port))) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_host_that_is_silent_costs_its_share_of_the_time_and_is_asked_last_from_then_on(
    postgres: Server,
) -> None:
    with Proxy(postgres.port) as proxy:
        proxy.stall()
        target = Target(dsn=hosts(postgres, proxy.port, postgres.port), deadline=2.0)
        async with connected(target) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        asked = proxy.accepted
        async with connected(target) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert proxy.accepted == asked


async def test_standby_is_refused_and_found_after_its_promotion() -> None:
    with Server() as primary, primary.standby() as standby:
        target = Target(dsn=hosts(primary, standby.port, primary.port))
        async with connected(target) as connection:
            assert await connection.fetchval("SELECT pg_is_in_recovery()") is False
        primary.kill()
        with pytest.raises(Unreachable) as refused:
            await connect(target, "pool", NODE)
        assert "it is a read-only standby" in refused.value.message
        assert "nothing listens there" in refused.value.message
        standby.promote()
        async with connected(target) as connection:
            assert await connection.fetchval("SHOW port") == str(standby.port)


async def test_pool_finds_the_new_primary() -> None:
    with Server() as primary, primary.standby() as standby:
        standby.catch_up()
        async with pool_of(Target(dsn=hosts(primary, primary.port, standby.port))) as pool:
            async with pool.acquire(timeout=10) as connection:
                await connection.execute("CREATE TABLE moved (n int)")
            standby.catch_up()
            primary.kill()
            standby.promote()
            with anyio.fail_after(60):
                while True:
                    try:
                        async with pool.acquire(timeout=10) as connection:
                            await connection.execute("INSERT INTO moved VALUES (1)")
                            break
                    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, Unreachable):
                        await anyio.sleep(0.05)


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def sealed(authority: Authority) -> Iterator[Server]:
    with Server(find(17), tls=authority.server()) as server:
        yield server


async def test_certificate_is_verified_as_the_dsn_asks(sealed: Server, authority: Authority, tmp_path: Path) -> None:
    good = sealed.dsn(sslmode="verify-full", sslrootcert=str(authority.certificate))
    async with connected(Target(dsn=good)) as connection:
        assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert connection.get_settings().application_name == f"pointsman-pool:{NODE}"
    bad = sealed.dsn(sslmode="verify-full", sslrootcert=str(Authority(tmp_path, "other").certificate))
    with pytest.raises(Unreachable, match="its certificate is not trusted"):
        await connect(Target(dsn=bad), "pool", NODE)


# -- behind a pooler -----------------------------------------------------------------------------------------


async def test_many_callers_share_few_sessions_of_a_pooler(postgres: Server, postgres_dsn: str) -> None:
    with Pooler(postgres.port) as pooler:
        target = Target(dsn=pooler.dsn(postgres_dsn.rpartition("/")[2]), statement_cache_size=0, deadline=30.0)
        async with pool_of(target, max_size=8) as pool, anyio.create_task_group() as tasks:
            for number in range(24):
                tasks.start_soon(_ask, pool, number)


async def _ask(pool: Pool, number: int) -> None:
    for _ in range(10):
        async with pool.acquire(timeout=30) as connection:
            await connection.execute("BEGIN")
            assert await connection.fetchval(f"SELECT $1::int8 + {number}", 1) == number + 1
            await connection.execute("COMMIT")


async def test_target_knows_which_of_its_ways_is_pooled() -> None:
    direct, pooled = Target(dsn="postgresql://u@h/d"), Target(dsn="postgresql://u@h/d", statement_cache_size=0)
    both = Target(dsn="postgresql://u@p/d", listen_dsn="postgresql://u@h/d", statement_cache_size=0)
    assert (direct.pooled(), direct.pooled(listen=True)) == (False, False)
    assert (pooled.pooled(), pooled.pooled(listen=True)) == (True, True)
    assert (both.pooled(), both.pooled(listen=True)) == (True, False)
    assert str(both.address(listen=True)) == "postgresql://u@h:5432/d"
