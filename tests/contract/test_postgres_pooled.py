"""The PostgreSQL backend behind a pooler in transaction mode: whatever is written or read in a hurry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kernel.config import Settings
from kernel.node import NodeId
from kernel.storage import Storage
from kernel.testing import storage as contracts
from kernel.testing.postgres import Server
from plugins.storage.postgres.connecting import Target
from plugins.storage.postgres.opening import looked_at, migrate
from plugins.storage.postgres.storage import assembled
from tests.contract.test_postgres import emptied
from tests.harness.pooler import Pooler

NODE = NodeId("00000000-0000-4000-8000-000000000002")


@pytest.fixture(scope="module")
def pooler(postgres: Server) -> Iterator[Pooler]:
    with Pooler(postgres.port) as pooler:
        yield pooler


@pytest.fixture(scope="module")
async def target(postgres: Server, pooler: Pooler) -> AsyncIterator[Target]:
    direct = postgres.create_database("pooled")
    target = Target(dsn=pooler.dsn("pooled"), listen_dsn=direct, statement_cache_size=0, deadline=60.0)
    await migrate(target, NODE, await looked_at(target, NODE))
    yield target
    postgres.drop_database("pooled")


class Pooled:
    @pytest.fixture
    async def storage(self, target: Target) -> AsyncIterator[Storage]:
        storage = await assembled(target, Settings(), NODE)
        await storage.sql.transaction(emptied)
        yield storage
        await storage.close()


class TestEnd(Pooled, contracts.EndContract):
    pass


class TestLane(Pooled, contracts.LaneContract):
    pass


class TestPlatform(Pooled, contracts.PlatformContract):
    pass


class TestRecording(Pooled, contracts.RecordingContract):
    pass


class TestSession(Pooled, contracts.SessionContract):
    pass
