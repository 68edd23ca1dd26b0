"""The PostgreSQL backend, put through the storage contract on the oldest and the newest version that is here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from kernel.config import Settings
from kernel.node import NodeId
from kernel.storage import Storage
from kernel.testing import storage as contracts
from kernel.testing.postgres import Server
from plugins.storage.postgres.connecting import Target
from plugins.storage.postgres.opening import looked_at, migrate
from plugins.storage.postgres.storage import assembled
from plugins.storage.schema import metadata

NODE = NodeId("00000000-0000-4000-8000-000000000001")


@pytest.fixture(scope="module")
def database(every_postgres: Server) -> Iterator[str]:
    """One for all tests here, emptied before each: that costs a hundredth of a new one."""
    yield every_postgres.create_database("contract")
    every_postgres.drop_database("contract")


@pytest.fixture(scope="module")
async def migrated(database: str) -> str:
    target = Target(dsn=database)
    await migrate(target, NODE, await looked_at(target, NODE))
    return database


def emptied(connection: Any) -> None:
    """Rows are deleted, which costs a tenth of truncating tables that hold a handful."""
    tables = set(sa.inspect(connection).get_table_names()) - {"alembic_version"}
    plugins = {table for table in tables if table.startswith("plugin_")}
    steps = [f'DROP TABLE "{table}"' for table in plugins]
    steps += [f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables) if table.name in tables]
    connection.execute(sa.text(f"DO $$ BEGIN {'; '.join(steps)}; END $$"))


class OnPostgres:
    @pytest.fixture
    async def storage(self, migrated: str) -> AsyncIterator[Storage]:
        storage = await assembled(Target(dsn=migrated), Settings(), NODE)
        await storage.sql.transaction(emptied)
        yield storage
        await storage.close()


class TestAgentChange(OnPostgres, contracts.AgentChangeContract):
    pass


class TestAgent(OnPostgres, contracts.AgentContract):
    pass


class TestBroker(OnPostgres, contracts.BrokerContract):
    pass


class TestCancel(OnPostgres, contracts.CancelContract):
    pass


class TestEnd(OnPostgres, contracts.EndContract):
    pass


class TestExpiry(OnPostgres, contracts.ExpiryContract):
    pass


class TestHistory(OnPostgres, contracts.HistoryContract):
    pass


class TestInbox(OnPostgres, contracts.InboxContract):
    pass


class TestLane(OnPostgres, contracts.LaneContract):
    pass


class TestList(OnPostgres, contracts.ListContract):
    pass


class TestLocal(OnPostgres, contracts.LocalContract):
    pass


class TestPlatform(OnPostgres, contracts.PlatformContract):
    pass


class TestPoison(OnPostgres, contracts.PoisonContract):
    pass


class TestProject(OnPostgres, contracts.ProjectContract):
    pass


class TestPruning(OnPostgres, contracts.PruningContract):
    pass


class TestRecording(OnPostgres, contracts.RecordingContract):
    pass


class TestRecovery(OnPostgres, contracts.RecoveryContract):
    pass


class TestReport(OnPostgres, contracts.ReportContract):
    pass


class TestSession(OnPostgres, contracts.SessionContract):
    pass


def test_no_contract_is_left_out() -> None:
    tried = {base for kind in OnPostgres.__subclasses__() for base in kind.__mro__}
    assert tried >= set(contracts.CONTRACTS)
