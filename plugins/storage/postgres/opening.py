"""Gets a hub to a database that it can rely on: reached, examined, migrated by one hub at a time, and heard."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import msgspec
import sqlalchemy as sa
from asyncpg import exceptions as pg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from kernel import Finding, Level, Misconfigured, NodeId, SchemaState, Settings
from plugins.storage import migrations
from plugins.storage.postgres.budget import Budget
from plugins.storage.postgres.connecting import Target, connect
from plugins.storage.postgres.dsn import Dsn
from plugins.storage.postgres.engine import engine_to
from plugins.storage.postgres.examining import Facts, echoes, facts, judged, migratable
from plugins.storage.postgres.faults import FAULTS, Unreachable, beneath, why
from plugins.storage.postgres.refusals import hopeless, refused

if TYPE_CHECKING:
    from plugins.storage.postgres.storage import PostgresStorage

log = logging.getLogger(__name__)

MIGRATION = 60.0
"""Seconds for one migration, and for waiting until another hub has made it."""
LOCK = 0x706F696E74  # "point"
"""The advisory lock of whoever migrates."""
PAUSE = 0.5
TOLD_EVERY = 5.0


async def opened(target: Target, settings: Settings, node_id: NodeId) -> PostgresStorage:
    """Raises: Misconfigured, with the sentence that says what to change."""
    from plugins.storage.postgres.storage import assembled

    await ready(target, node_id, Budget(pool=settings.storage.pool_max))
    try:
        return await assembled(target, settings, node_id)
    except Unreachable as fault:
        raise unusable(target, fault) from fault


async def ready(target: Target, node_id: str, budget: Budget) -> None:
    """The database is one that a hub can serve from, of the schema of this code.

    Raises: Misconfigured.
    """
    readable(target)
    found = await _reached(target, node_id)
    for finding in judged(found, budget, target):
        _heeded(finding)
    try:
        _heeded(await echoes(target, node_id))
    except FAULTS as fault:
        raise Misconfigured(
            f"LISTEN cannot be tried: {why(fault)}; look at `listen_dsn` of the plugin postgres"
        ) from fault
    except Unreachable as fault:
        raise unusable(target, fault) from fault
    await migrate(target, node_id, found)
    log.info("connections: %s", found.room.fits(budget))


def readable(target: Target) -> Dsn:
    """What `dsn` says; `listen_dsn` can be read as well. Raises: Misconfigured."""
    address = target.address()
    try:
        target.address(listen=True)
    except Misconfigured as fault:
        raise Misconfigured(fault.message.replace("the DSN", "`listen_dsn`", 1)) from None
    return address


def _heeded(finding: Finding) -> None:
    if finding.level is Level.FAIL:
        raise Misconfigured(str(finding))
    if finding.level is Level.WARN:
        log.warning("%s", finding)


# -- a server that is not there yet --------------------------------------------------------------------------


async def _reached(target: Target, node_id: str) -> Facts:
    """What the server says, once it answers; one that may yet come is waited for."""
    until = time.monotonic() + target.patience
    told = 0.0
    while True:
        try:
            return await looked_at(target, node_id)
        except Unreachable as fault:
            now = time.monotonic()
            if hopeless(fault) or now > until:
                raise unusable(target, fault) from fault
            if now > told + TOLD_EVERY:
                told = now
                log.warning("waiting up to %.0f s for the database: %s", until - now, fault.message)
        await anyio.sleep(PAUSE)


async def looked_at(target: Target, node_id: str) -> Facts:
    """Raises: Unreachable, Misconfigured."""
    connection = await connect(target, "start", node_id)
    try:
        return await facts(connection)
    except FAULTS as fault:
        raise Misconfigured(f"the database {target.address()} cannot be looked at: {why(fault)}") from fault
    finally:
        connection.terminate()


def unusable(target: Target, fault: Unreachable) -> Misconfigured:
    """The one sentence about a server that does not let a hub in."""
    return Misconfigured(str(refused(fault, key=key_of(target, fault))))


def key_of(target: Target, fault: Unreachable) -> str:
    """The setting that holds the DSN which failed."""
    return "listen_dsn" if target.listen_dsn and fault.dsn == target.address(listen=True) else "dsn"


# -- the schema ----------------------------------------------------------------------------------------------


async def migrate(target: Target, node_id: str, found: Facts) -> None:
    """Bring the database to the schema of this code; of hubs that start together one does, the others wait for it.

    Raises: Misconfigured.
    """
    async with _migrating(target, node_id) as connection:
        before = await connection.run_sync(_state)
        if before.found == before.wanted:
            return
        if before.known:
            _heeded(migratable(found, before))
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        if (await connection.run_sync(_state)).found != before.wanted:
            log.info("migrating the database from schema %s to %s", before.found or "none", before.wanted)
            await connection.run_sync(migrations.upgrade)
        with anyio.CancelScope(shield=True), anyio.move_on_after(MIGRATION):
            await connection.commit()


async def schema_of(target: Target) -> SchemaState:
    """The schema of the database and that of this code; nothing is changed.

    Raises: Misconfigured when it cannot be read.
    """
    async with _migrating(target, str(uuid4())) as connection:
        return await connection.run_sync(_state)


def _state(connection: sa.Connection) -> SchemaState:
    return migrations.state(migrations.current(connection))


@asynccontextmanager
async def _migrating(target: Target, node_id: str) -> AsyncIterator[AsyncConnection]:
    """A connection past the pooler, with time enough for a migration.

    Raises: Misconfigured for whatever the database says.
    """
    engine = engine_to(msgspec.structs.replace(target, deadline=MIGRATION), "migrate", node_id, listen=True)
    try:
        async with engine.connect() as connection:
            yield connection
    except Unreachable as fault:
        raise unusable(target, fault) from fault
    except (*FAULTS, DBAPIError) as fault:
        raise _not_migrated(target, beneath(fault) or fault) from fault
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
            await engine.dispose()


def _not_migrated(target: Target, fault: BaseException) -> Misconfigured:
    schema = f"the schema of the database {target.address(listen=True)}"
    if isinstance(fault, pg.QueryCanceledError | TimeoutError):
        return Misconfigured(
            f"{schema} was not to be had within {MIGRATION:g} s: another hub migrates it, or a session holds a lock on "
            "its tables; end that session, as pg_stat_activity shows it"
        )
    return Misconfigured(f"{schema} cannot be read or made: {why(fault)}; {_remedy(fault)}")


def _remedy(fault: BaseException) -> str:
    match fault:
        case pg.InsufficientPrivilegeError():
            return "give the user of the DSN a schema of its own, or run `pointsman db migrate` as the owner"
        case pg.SyntaxOrAccessError():
            return "tables of another program are in its way: give the hubs a database of their own"
        case _:
            return "nothing was changed: start again when the server is well"
