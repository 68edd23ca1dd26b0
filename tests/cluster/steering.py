"""Two hubs' transactions that meet where the test wants them to: one is the storage's, the other the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import pytest

from kernel.config import Settings
from kernel.node import NodeId
from kernel.testing.storage.world import World
from plugins.storage.postgres.connecting import Connection, Target, connect
from plugins.storage.postgres.opening import opened

T = TypeVar("T")
NODE = NodeId("00000000-0000-4000-8000-000000000001")
OTHER = NodeId("00000000-0000-4000-8000-000000000002")


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[World]:
    storage = await opened(Target(dsn=postgres_dsn), Settings(), NODE)
    yield await World.built(storage)
    await storage.close()


@pytest.fixture
async def other(postgres_dsn: str) -> AsyncIterator[Connection]:
    """Another hub's connection, in whose transaction the test says when what happens."""
    connection = await connect(Target(dsn=postgres_dsn, deadline=60.0), "other", NODE)
    yield connection
    connection.terminate()


@pytest.fixture
async def watcher(postgres_dsn: str) -> AsyncIterator[Connection]:
    """In no transaction: inside of one the server's activity stands still."""
    connection = await connect(Target(dsn=postgres_dsn), "watcher", NODE)
    yield connection
    connection.terminate()


async def waits_for_a_lock(watcher: Connection, application: str) -> None:
    """Until a statement of these connections stands in line behind another transaction."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE $1"
    with anyio.fail_after(30):
        while not await watcher.fetchval(asked, f"{application}%"):
            await anyio.sleep(0.01)


@asynccontextmanager
async def unfinished(other: Connection, *statements: tuple[Any, ...]) -> AsyncIterator[None]:
    """What another hub has written and not committed yet, while the body runs; undone after it unless it commits."""
    await other.execute("BEGIN")
    for text, *values in statements:
        await other.execute(text, *values)
    try:
        yield
    finally:
        if other.is_in_transaction():
            await other.execute("ROLLBACK")


async def met(
    other: Connection,
    watcher: Connection,
    call: Callable[[], Awaitable[T]],
    *statements: tuple[Any, ...],
    by: str = "pointsman-pool",
) -> T | Exception:
    """What `call` comes to when it has to wait for these statements of another hub, which then are committed."""
    answers: list[T | Exception] = []

    async def run() -> None:
        try:
            answers.append(await call())
        except Exception as fault:
            answers.append(fault)

    async with unfinished(other, *statements), anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await waits_for_a_lock(watcher, by)
        await other.execute("COMMIT")
    return answers[0]
