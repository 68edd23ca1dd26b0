"""Looks at a server before a hub relies on it, and says in one sentence each what has to change."""

from __future__ import annotations

import time
from collections.abc import Iterator

import anyio
import asyncpg
import msgspec

from kernel import Finding, Level, SchemaState
from plugins.storage.postgres.budget import Budget, Room
from plugins.storage.postgres.connecting import Connection, Target, connect
from plugins.storage.schema import SEQUENCE, metadata

OLDEST = 15
MINORS = {15: 16, 16: 12, 17: 8, 18: 2}
"""From these on LISTEN does not fail over a truncated commit log."""
ECHO = 2.0
"""Seconds that a notification may take from one of our connections to the other."""
SKEW = 5.0

_LOOK = """
SELECT current_setting('server_version_num')::int4 AS version,
       pg_encoding_to_char(d.encoding) AS encoding,
       pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only') AS read_only,
       current_schema() AS schema,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create,
       coalesce((SELECT bool_and(has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                                 AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
                   FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace
                    AND c.relkind = 'r' AND c.relname = ANY($1::text[])), true)
         AND coalesce((SELECT bool_and(has_sequence_privilege(c.oid, 'USAGE'))
                         FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace
                          AND c.relkind = 'S' AND c.relname = $2), true) AS may_write,
       coalesce((SELECT array_agg(c.relname::text ORDER BY c.relname)
                   FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace
                    AND c.relkind = 'r' AND c.relname = ANY($3::text[])), '{}') AS tables,
       current_setting('max_connections')::int4 AS max_connections,
       current_setting('superuser_reserved_connections')::int4
         + coalesce(current_setting('reserved_connections', true)::int4, 0) AS reserved,
       r.rolname AS role, r.rolconnlimit AS user_limit, d.datconnlimit AS database_limit,
       (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL
           AND coalesce(application_name, '') NOT LIKE 'pointsman-%')::int4 AS used,
       (SELECT count(DISTINCT application_name) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name LIKE 'pointsman-listen:%')::int4 AS running,
       current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       pg_notification_queue_usage()::float8 AS queue,
       clock_timestamp() AS now,
       pg_backend_pid() AS pid
  FROM pg_database d, pg_roles r
 WHERE d.datname = current_database() AND r.rolname = current_user
"""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself to this user."""

    version: int
    encoding: str
    takes_writes: bool
    schema: str | None
    role: str
    may_create: bool
    may_write: bool
    tables: list[str]
    """Of the names that ours have, those that are there."""
    room: Room
    fsync: bool
    durable: bool
    queue: float
    """How full the queue of notifications is, 0 to 1."""
    offset: float
    """Seconds that its clock is ahead of ours."""
    pooled: bool
    """Whether something between us and it gives sessions out by turns, or might."""

    @property
    def major(self) -> int:
        return self.version // 10_000

    @property
    def minor(self) -> int:
        return self.version % 10_000


async def facts(connection: Connection) -> Facts:
    before = time.time()
    row = await connection.fetchrow(_LOOK, [*metadata.tables, "alembic_version"], SEQUENCE, [*metadata.tables])
    after = time.time()
    if row is None:
        raise asyncpg.InterfaceError("the server did not say who is connected to what")
    return Facts(
        version=row["version"],
        encoding=row["encoding"],
        takes_writes=not row["standby"] and row["read_only"] == "off",
        schema=row["schema"],
        role=row["role"],
        may_create=row["may_create"],
        may_write=row["may_write"],
        tables=row["tables"],
        room=Room(
            max_connections=row["max_connections"],
            reserved=row["reserved"],
            user_limit=row["user_limit"] if row["user_limit"] >= 0 else None,
            database_limit=row["database_limit"] if row["database_limit"] >= 0 else None,
            used=max(0, row["used"]),
            running=row["running"],
        ),
        fsync=row["fsync"] == "on",
        durable=row["synchronous_commit"] != "off",
        queue=row["queue"],
        offset=row["now"] / 1_000_000 - (before + after) / 2,
        pooled=row["pid"] != connection.get_server_pid(),
    )


# -- what a server that answers lacks ------------------------------------------------------------------------


def judged(found: Facts, budget: Budget, target: Target) -> Iterator[Finding]:
    """One finding for each thing that was looked at; what stops a start comes with what to change."""
    yield _version(found)
    yield _finding(
        "encoding",
        found.encoding == "UTF8",
        f"the database stores text as {found.encoding}",
        "make another with `CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`",
    )
    yield _finding(
        "writes",
        found.takes_writes,
        "the server takes writes" if found.takes_writes else "the server is a read-only standby",
        "name the primary in the DSN, or all servers with a comma between them",
    )
    yield _finding(
        "pooler",
        not found.pooled or target.statement_cache_size == 0,
        "a pooler stands in front of the server" if found.pooled else "nothing stands between the hub and the server",
        "set `statement_cache_size: 0` and a direct `listen_dsn` in the config of the plugin postgres",
        level=Level.WARN,
    )
    yield _rights(found)
    yield _budget(found.room, budget)
    yield from _weaknesses(found)


def _version(found: Facts) -> Finding:
    told = f"PostgreSQL {found.major}.{found.minor}"
    if found.major < OLDEST:
        return Finding(check="version", level=Level.FAIL, told=f"the server is {told}", fix=f"use {OLDEST} or newer")
    wanted = MINORS.get(found.major, 0)
    if found.minor < wanted:
        fix = f"update to {found.major}.{wanted} or newer: LISTEN may fail before, after a long time"
        return Finding(check="version", level=Level.WARN, told=told, fix=fix)
    return Finding(check="version", told=told)


def _budget(room: Room, budget: Budget) -> Finding:
    if room.offered < budget.needed:
        reserved = room.reserved if room.narrowest == "max_connections" else 0
        fix = f"lower storage.pool_max, or raise {room.narrowest} to {budget.needed + reserved} or more"
        return Finding(check="connections", level=Level.FAIL, told=f"not one hub fits: {budget}; {room}", fix=fix)
    if room.hubs(budget) < max(2, room.running + 1):
        fix = f"for more hubs raise {room.narrowest}, or lower storage.pool_max"
        return Finding(check="connections", level=Level.WARN, told=room.fits(budget), fix=fix)
    return Finding(check="connections", told=room.fits(budget))


def _weaknesses(found: Facts) -> Iterator[Finding]:
    sure = found.fsync and found.durable
    told = "commits are on disk when they are acknowledged" if sure else "the server acknowledges before it writes"
    yield _finding("durability", sure, told, "set fsync and synchronous_commit to on", level=Level.WARN)
    told = f"the queue of notifications is {found.queue:.0%} full"
    yield _finding(
        "notifications",
        found.queue < 0.5,
        told,
        "find the session that listens in an old transaction",
        level=Level.WARN,
    )
    told = f"its clock is {abs(found.offset):.3f} s {'ahead' if found.offset > 0 else 'behind'}"
    yield _finding(
        "clock", abs(found.offset) < SKEW, told, "set the clock of this machine, or of the server", level=Level.WARN
    )


def _rights(found: Facts) -> Finding:
    """Whether this user may do what a hub does there."""
    if found.schema is None:
        told = "no schema of the search path exists, or this user may not use one"
        fix = f"`GRANT USAGE, CREATE ON SCHEMA public TO {found.role}`, or correct its search_path, or that of the DSN"
        return Finding(check="rights", level=Level.FAIL, told=told, fix=fix)
    where = f"IN SCHEMA {found.schema} TO {found.role}"
    return _finding(
        "rights",
        found.may_write,
        f"the user {found.role} may {'' if found.may_write else 'not '}read and write the tables in {found.schema}",
        f"`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES {where}` and `GRANT USAGE ON ALL SEQUENCES {where}`",
    )


def migratable(found: Facts, schema: SchemaState) -> Finding:
    """Whether this user may make what is missing in the schema."""
    if found.schema is None:
        return Finding(check="migration", told="there is no schema to look at")
    if schema.found is None and found.tables:
        told = f"schema {found.schema} has tables of another program, in the way of ours: {', '.join(found.tables)}"
        return Finding(check="migration", level=Level.FAIL, told=told, fix="give the hubs a database of their own")
    if schema.found == schema.wanted or not schema.known:
        return Finding(check="migration", told="none is needed")
    return _finding(
        "migration",
        found.may_create,
        f"a migration is needed, and the user {found.role} may {'' if found.may_create else 'not '}create tables in "
        f"schema {found.schema}",
        f"`GRANT CREATE ON SCHEMA {found.schema} TO {found.role}`, or run `pointsman db migrate` as its owner",
    )


def _finding(check: str, good: bool, told: str, fix: str, *, level: Level = Level.FAIL) -> Finding:
    return Finding(check=check, told=told) if good else Finding(check=check, level=level, told=told, fix=fix)


# -- LISTEN, through the whole path --------------------------------------------------------------------------


async def echoes(target: Target, node_id: str) -> Finding:
    """Whether what one connection signals is heard by the other.

    Raises: Unreachable, and what the driver raises.
    """
    talker = await connect(target, "signal", node_id)
    try:
        listener = await connect(target, "listen", node_id, listen=True)
        try:
            heard = await _heard(talker, listener, f"pointsman_probe_{node_id.replace('-', '')}")
            pooled = await listener.fetchval("SELECT pg_backend_pid()") != listener.get_server_pid()
        finally:
            listener.terminate()
    finally:
        talker.terminate()
    key = "listen_dsn" if target.listen_dsn else "dsn"
    if heard is not None:
        return Finding(check="listen", told=f"a notification took {heard * 1_000:.1f} ms")
    if pooled:
        told = f"`{key}` leads through a pooler that loses LISTEN"
        fix = "set `listen_dsn` of the plugin postgres to the server itself"
    else:
        told = f"what is notified over `dsn` is not heard over `{key}` within {ECHO:g} s"
        fix = "let `dsn` and `listen_dsn` of the plugin postgres lead to the same database"
    return Finding(check="listen", level=Level.FAIL, told=told, fix=fix)


async def _heard(talker: Connection, listener: Connection, channel: str) -> float | None:
    """Seconds from one to the other; None when nothing arrived."""
    arrived = anyio.Event()
    await listener.add_listener(channel, lambda *_: arrived.set())
    started = time.monotonic()
    await talker.execute(f"NOTIFY {channel}")
    with anyio.move_on_after(ECHO):
        await arrived.wait()
    return time.monotonic() - started if arrived.is_set() else None
