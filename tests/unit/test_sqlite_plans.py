"""Every statement of the SQLite backend finds what it wants by an index: no cost grows with history."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from kernel import IntentFilter, State
from plugins.storage import ledger as room
from plugins.storage import migrations
from plugins.storage.ledger import agents, inbox, lookups
from plugins.storage.ledger.query import Query
from plugins.storage.schema import messages
from plugins.storage.sqlite.files import Joined
from plugins.storage.sqlite.sql import engine_on
from plugins.storage.sqlite.tx import DIALECT

GROWING = ("broker_dispatch", "messages", "transitions", "agents", "nonces", "idempotency_keys")
"""Tables that grow with use. Nodes, brokers and projects are few."""
PARTIAL = re.compile(r"USING (COVERING )?INDEX ix_\w+_(unfinished|deadline|in_hand|set_aside)$")
"""Walked from end to end, but it holds only what is unfinished, or in hand."""


ELSEWHERE = {"eras"}
"""Rooms whose table SQLite has no use for."""


def statements() -> Iterator[tuple[str, Query[Any]]]:
    for module in pkgutil.iter_modules(room.__path__):
        if module.name in ELSEWHERE:
            continue
        for name, value in vars(importlib.import_module(f"{room.__name__}.{module.name}")).items():
            for number, query in enumerate(found_in(value)):
                yield f"{module.name}.{name}.{number}", query


def found_in(value: Any) -> Iterator[Query[Any]]:
    if isinstance(value, Query):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from found_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from found_in(one)


STATEMENTS = {name: query for name, query in statements() if not query.on(DIALECT).sql.startswith("INSERT")}


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None, factory=Joined)
    with engine_on(connection).connect() as joined:
        migrations.upgrade(joined)
    yield connection
    connection.close()


def plan_of(connection: sqlite3.Connection, query: Query[Any]) -> list[str]:
    prepared = query.on(DIALECT)
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {prepared.sql}", [None] * len(prepared.names))]


def walked(connection: sqlite3.Connection, query: Query[Any]) -> list[str]:
    """The steps of its plan that go through a whole growing table, or sort what they find there."""
    plan = plan_of(connection, query)
    return [
        step
        for step in plan
        if re.match(rf"SCAN ({'|'.join(GROWING)}|lane|other)\b", step) and not PARTIAL.search(step)
    ]


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_no_statement_walks_a_table_that_grows(connection: sqlite3.Connection, name: str) -> None:
    assert walked(connection, STATEMENTS[name]) == []


def test_all_hot_statements_are_looked_at() -> None:
    rooms = {name.partition(".")[0] for name in STATEMENTS}
    assert rooms >= {"claims", "ends", "endings", "births", "sessions", "sweeping", "lookups", "agents", "pruning"}
    assert len(STATEMENTS) > 60


@pytest.mark.parametrize("onward", [False, True])
@pytest.mark.parametrize("state", [None, State.PENDING, State.IN_PROGRESS, State.FAILED, State.EXPIRED])
@pytest.mark.parametrize("lane", ["control", "message"])
@pytest.mark.parametrize(
    "where",
    [IntentFilter(), IntentFilter(agent_id="a"), IntentFilter(broker_id="b"), IntentFilter(project_id="p")],
)
def test_lists_of_intents_are_read_along_an_index(
    connection: sqlite3.Connection, where: IntentFilter, lane: str, state: State | None, onward: bool
) -> None:
    query = lookups._listing(lane, lookups._given(where), state, onward)
    plan = [
        row[3]
        for row in connection.execute(
            f"EXPLAIN QUERY PLAN {query.on(DIALECT).sql}", [None] * query.on(DIALECT).sql.count("?")
        )
    ]
    assert all("USING" in step and "INDEX" in step for step in plan if step.startswith(("SCAN", "SEARCH"))), plan
    sorts = any(step.startswith("USE TEMP B-TREE") for step in plan)
    assert not sorts or state in (State.PENDING, State.IN_PROGRESS), "only what is unfinished may be sorted"


@pytest.mark.parametrize("state", [None, State.PENDING, State.DONE, State.FAILED])
def test_what_was_said_together_is_found_by_its_group(connection: sqlite3.Connection, state: State | None) -> None:
    """However much history there is; the few rows of a group may be sorted."""
    query = lookups._listing("message", lookups._given(IntentFilter(group_id="g")), state, False)
    assert any("USING INDEX ix_messages_group_id" in step for step in plan_of(connection, query))


@pytest.mark.parametrize("onward", [False, True])
@pytest.mark.parametrize("given", [set(), {"project_id"}, {"runtime_broker_id"}])
def test_lists_of_agents_are_read_along_an_index(connection: sqlite3.Connection, given: set[str], onward: bool) -> None:
    query: Query[Any] = agents._listing(frozenset(given), False, onward, False)
    assert sorts(connection, query) == []


@pytest.mark.parametrize("onward", [False, True])
@pytest.mark.parametrize("unread", [False, True])
def test_inboxes_are_read_along_an_index(connection: sqlite3.Connection, unread: bool, onward: bool) -> None:
    assert sorts(connection, inbox._listing(frozenset(), unread, onward)) == []


def sorts(connection: sqlite3.Connection, query: Query[Any]) -> list[str]:
    plan = [
        row[3]
        for row in connection.execute(
            f"EXPLAIN QUERY PLAN {query.on(DIALECT).sql}", [None] * query.on(DIALECT).sql.count("?")
        )
    ]
    return [step for step in plan if step.startswith("USE TEMP B-TREE") or re.match(r"SCAN \w+$", step)]


def test_a_bad_plan_would_be_noticed(connection: sqlite3.Connection) -> None:
    assert walked(connection, Query(sa.select(messages.c.id).where(messages.c.msg == "x"))) != []
