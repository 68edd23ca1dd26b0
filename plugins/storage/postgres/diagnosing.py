"""Everything that a start on this database would refuse, all of it at once and without changing anything."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import partial
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from kernel import Finding, Level, Misconfigured, Settings, session_secret
from plugins.storage.affairs import affairs, schema_finding
from plugins.storage.postgres.budget import Budget
from plugins.storage.postgres.connecting import Target
from plugins.storage.postgres.engine import engine_to
from plugins.storage.postgres.examining import Facts, echoes, judged, migratable
from plugins.storage.postgres.faults import FAULTS, Unreachable, beneath, why
from plugins.storage.postgres.opening import key_of, looked_at, readable, schema_of
from plugins.storage.postgres.refusals import refused


async def diagnosed(target: Target, settings: Settings) -> list[Finding]:
    """The good findings too."""
    found = _secret()
    try:
        async for finding in _of_the_server(target, settings):
            found.append(finding)
    except Unreachable as fault:
        found.append(refused(fault, key=key_of(target, fault)))
    except Misconfigured as fault:
        found.append(_failed("database", fault.message))
    except (*FAULTS, DBAPIError) as fault:
        found.append(_failed("database", why(beneath(fault) or fault)))
    return found


def _failed(check: str, told: str) -> Finding:
    return Finding(check=check, level=Level.FAIL, told=told)


def _secret() -> list[Finding]:
    """Hubs that share a database derive their keys from one secret; how good it is, is not looked at here."""
    try:
        session_secret(alone=False)
    except Misconfigured as fault:
        return [_failed("secret", fault.message)]
    return []


async def _of_the_server(target: Target, settings: Settings) -> AsyncIterator[Finding]:
    """Raises: Misconfigured, Unreachable, and what the driver raises."""
    address = readable(target)
    node_id = str(uuid4())
    facts = await looked_at(target, node_id)
    yield Finding(check="database", told=f"{address} answers")
    for finding in judged(facts, Budget(pool=settings.storage.pool_max), target):
        yield finding
    for finding in await _of_the_schema(target, facts, settings, node_id):
        yield finding
    if facts.takes_writes:
        yield await echoes(target, node_id)


async def _of_the_schema(target: Target, facts: Facts, settings: Settings, node_id: str) -> list[Finding]:
    schema = await schema_of(target)
    found = [schema_finding(schema), migratable(facts, schema)]
    if schema.found == schema.wanted and facts.may_write:
        found.extend(await _affairs(target, settings, node_id))
    return found


async def _affairs(target: Target, settings: Settings, node_id: str) -> list[Finding]:
    engine = engine_to(target, "doctor", node_id, listen=True)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(partial(_told, settings=settings))
    finally:
        await engine.dispose()


def _told(connection: sa.Connection, *, settings: Settings) -> list[Finding]:
    now = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    return list(affairs(connection, now, settings.node.lost_after, os.environ.get("SESSION_SECRET")))
