"""Every statement finds what it wants by an index on PostgreSQL too, in an empty database as in a full one; those of
every call keep that plan: no cost grows with history."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from kernel.testing.postgres import Server
from plugins.storage import ledger, postgres
from plugins.storage.ledger.query import Prepared, Query
from plugins.storage.postgres.connecting import Connection, Target, connect
from plugins.storage.postgres.given import Statement
from plugins.storage.postgres.opening import looked_at, migrate
from plugins.storage.postgres.tx import DIALECT

pytestmark = pytest.mark.anyio

GROWING = {"broker_dispatch", "messages", "transitions", "agents", "nonces", "idempotency_keys"}
"""Tables that grow with use. Nodes, brokers and projects are few."""
SHORT = ("_unfinished", "_deadline", "_in_hand", "_set_aside")
"""Indexes that may be walked from end to end: they hold only what is unfinished, in hand, or went wrong."""


def of(room: Any, kind: type) -> Iterator[tuple[str, Any]]:
    for module in pkgutil.iter_modules(room.__path__):
        for name, value in vars(importlib.import_module(f"{room.__name__}.{module.name}")).items():
            for number, one in enumerate(found_in(value, kind)):
                yield f"{module.name}.{name}.{number}", one


def found_in(value: Any, kind: type) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from found_in(one, kind)


COLD: dict[str, Prepared] = {
    name: prepared
    for name, query in of(ledger, Query)
    if not (prepared := query.on(DIALECT)).sql.startswith("INSERT") and "counters" not in prepared.sql
}
HOT: dict[str, Prepared] = {name: statement.prepared for name, statement in of(postgres, Statement)}


@pytest.fixture(scope="module")
async def empty(postgres: Server) -> AsyncIterator[Connection]:
    async for connection in _opened(postgres, "plans_empty"):
        yield connection


@pytest.fixture(scope="module")
async def full(postgres: Server) -> AsyncIterator[Connection]:
    async for connection in _opened(postgres, "plans_full"):
        for statement in FILLED:
            await connection.execute(statement)
        yield connection


async def _opened(server: Server, name: str) -> AsyncIterator[Connection]:
    """A connection as those of every call are opened."""
    target = Target(dsn=server.create_database(name), deadline=60.0)
    await migrate(target, name, await looked_at(target, name))
    connection = await connect(target, "owner", name)
    yield connection
    connection.terminate()
    server.drop_database(name)


FILLED = (
    """
    INSERT INTO broker_dispatch (id, broker_id, agent_id, agent_slug, project_id, op, lane, state, seq, deadline_at,
        route, principal, request_id, node_id, created_at, ended_at)
    SELECT gen_random_uuid(), md5('broker')::uuid, md5((n % 100)::text)::uuid, 'a', md5('project')::uuid, 'stop',
        'control', CASE WHEN n % 101 = 0 THEN 'pending' ELSE 'done' END, nextval('dispatch_seq'), now(), 'forward',
        'user:x', 'r', md5('node')::uuid, now(), CASE WHEN n % 101 <> 0 THEN now() END
    FROM generate_series(1, 100000) n
    """,
    """
    INSERT INTO messages (id, project_id, sender, recipient, recipient_agent_id, msg, broker_id, agent_slug,
        dispatch_state, seq, deadline_at, created, ended_at)
    SELECT gen_random_uuid(), md5('project')::uuid, 'user:x', 'a', md5((n % 100)::text)::uuid, 'hello',
        md5('broker')::uuid, 'a', CASE WHEN n % 19 = 0 THEN 'pending' ELSE 'done' END, nextval('dispatch_seq'), now(),
        now(), CASE WHEN n % 19 <> 0 THEN now() END
    FROM generate_series(1, 20000) n
    """,
    "INSERT INTO projects (id, name, slug, created, updated) VALUES (md5('project')::uuid, 'p', 'p', now(), now())",
    """
    INSERT INTO agents (id, slug, name, project_id, runtime_broker_id, created, updated)
    SELECT md5(n::text)::uuid, n::text, 'a', md5('project')::uuid, md5((n % 50)::text)::uuid, now(), now()
    FROM generate_series(1, 10000) n
    """,
    "ANALYZE",
)
"""10⁵ commands and 2 · 10⁴ messages, of which a thousand each wait, and 10⁴ agents."""


FIRST_COLUMNS = """
SELECT index.relname, attname FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid
JOIN pg_attribute ON attrelid = indexrelid AND attnum = 1
"""
"""Of every index."""


async def plan_of(connection: Connection, prepared: Prepared) -> dict[str, Any]:
    """The plan for any values, as it is kept."""
    await connection.execute(f"PREPARE looked AS {prepared.sql}")
    values = f"({', '.join(['NULL'] * len(prepared.names))})" if prepared.names else ""
    (row,) = await connection.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE looked{values}")
    await connection.execute("DEALLOCATE looked")
    plan: dict[str, Any] = json.loads(row[0])[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for one in plan.get("Plans", ()):
        yield from nodes(one)


def walks(plan: dict[str, Any]) -> list[str]:
    """What goes through a whole growing table."""
    return [
        f"{node['Node Type']} on {node['Relation Name']} {node.get('Index Name', '')}"
        for node in nodes(plan)
        if node.get("Relation Name") in GROWING
        and (node["Node Type"] == "Seq Scan" or ("Index Name" in node and not bounded(node)))
    ]


def bounded(node: dict[str, Any]) -> bool:
    return "Index Cond" in node or node["Index Name"].endswith(SHORT)


@pytest.mark.parametrize("name", HOT)
@pytest.mark.parametrize("place", ["empty", "full"])
async def test_a_statement_of_every_call_finds_its_rows_by_index(
    empty: Connection, full: Connection, place: str, name: str
) -> None:
    plan = await plan_of(empty if place == "empty" else full, HOT[name])
    assert walks(plan) == []
    assert {node["Node Type"] for node in nodes(plan)}.isdisjoint({"Hash Join", "Merge Join"})


@pytest.mark.parametrize("name", HOT)
@pytest.mark.parametrize("place", ["empty", "full"])
async def test_a_statement_of_every_call_walks_no_index_either(
    empty: Connection, full: Connection, place: str, name: str
) -> None:
    """Neither what others have waiting, nor what is in hand: it begins where its rows are, by an index's first
    column."""
    connection = empty if place == "empty" else full
    first = {index: column for index, column in await connection.fetch(FIRST_COLUMNS)}  # noqa: C416 - rows are no pairs to mypy
    for node in nodes(await plan_of(connection, HOT[name])):
        if node.get("Relation Name") in GROWING and "Index Name" in node:
            assert f"({first[node['Index Name']]} " in node.get("Index Cond", ""), node


@pytest.mark.parametrize("name", COLD)
async def test_no_other_statement_walks_a_table_that_grew(full: Connection, name: str) -> None:
    assert walks(await plan_of(full, COLD[name])) == []


async def test_connections_of_every_call_keep_one_plan_for_all_values(empty: Connection) -> None:
    assert await empty.fetchval("SHOW plan_cache_mode") == "force_generic_plan"
