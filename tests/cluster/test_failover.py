"""A primary that stops taking writes: connections to it are dropped, and the new primary is found in the same call."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest

from kernel.clock import SYSTEM
from kernel.config import Settings
from kernel.errors import StorageUnavailable
from kernel.node import NodeId
from kernel.project import Project
from kernel.storage import Storage
from kernel.testing.postgres import Server, Standby
from plugins.storage.postgres.connecting import Target
from plugins.storage.postgres.opening import opened

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair() -> Iterator[tuple[Server, Standby]]:
    with Server() as primary, primary.standby() as standby:
        yield primary, standby


def both(pair: tuple[Server, Standby]) -> str:
    return f"postgresql://postgres@{','.join(f'127.0.0.1:{server.port}' for server in pair)}/postgres"


@asynccontextmanager
async def storage_on(dsn: str) -> AsyncIterator[Storage]:
    storage = await opened(Target(dsn=dsn), Settings(), NodeId(str(uuid.uuid4())))
    try:
        yield storage
    finally:
        await storage.close()


async def write(storage: Storage) -> Project:
    name = f"p{uuid.uuid4().hex[:8]}"
    now = SYSTEM.now()
    made, _ = await storage.create_project(
        Project(id=SYSTEM.uuid7(), name=name, slug=name, created=now, updated=now), None
    )
    return made


async def writes_again(storage: Storage) -> Project:
    with anyio.fail_after(60):
        while True:
            try:
                return await write(storage)
            except StorageUnavailable:
                await anyio.sleep(0.05)


async def test_primary_that_is_demoted_without_closing_a_connection(pair: tuple[Server, Standby]) -> None:
    """As clouds do it: the old server stays, and answers every write with an error."""
    primary, standby = pair
    async with storage_on(both(pair)) as storage:
        await write(storage)
        standby.catch_up()
        primary.configure(default_transaction_read_only="on")
        standby.promote()
        made = await writes_again(storage)
        await storage.ping()
    assert standby.sql(f"select count(*) from projects where id = '{made.id}'") == [["1"]]


async def test_primary_that_is_killed(pair: tuple[Server, Standby]) -> None:
    primary, standby = pair
    async with storage_on(both(pair)) as storage:
        await write(storage)
        standby.catch_up()
        primary.kill()
        with pytest.raises(StorageUnavailable, match="read-only standby"):
            await write(storage)
        standby.promote()
        made = await writes_again(storage)
    assert standby.sql(f"select count(*) from projects where id = '{made.id}'") == [["1"]]
