"""The SQLite backend, put through the storage contract."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernel.storage import Storage
from kernel.testing import storage as contracts
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage


@pytest.fixture(scope="module")
async def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with its schema; each test gets a copy."""
    path = tmp_path_factory.mktemp("migrated") / "hub.db"
    await (await opened(Options(path=str(path)))).close()
    return path


class OnSqlite:
    @pytest.fixture
    async def storage(self, tmp_path: Path, migrated: Path) -> AsyncIterator[Storage]:
        shutil.copy(migrated, tmp_path / "hub.db")
        storage = SqliteStorage(await opened(Options(path=str(tmp_path / "hub.db"))))
        yield storage
        await storage.close()


class TestAgentChange(OnSqlite, contracts.AgentChangeContract):
    pass


class TestAgent(OnSqlite, contracts.AgentContract):
    pass


class TestBroker(OnSqlite, contracts.BrokerContract):
    pass


class TestCancel(OnSqlite, contracts.CancelContract):
    pass


class TestEnd(OnSqlite, contracts.EndContract):
    pass


class TestExpiry(OnSqlite, contracts.ExpiryContract):
    pass


class TestHistory(OnSqlite, contracts.HistoryContract):
    pass


class TestInbox(OnSqlite, contracts.InboxContract):
    pass


class TestLane(OnSqlite, contracts.LaneContract):
    pass


class TestList(OnSqlite, contracts.ListContract):
    pass


class TestLocal(OnSqlite, contracts.LocalContract):
    pass


class TestPlatform(OnSqlite, contracts.PlatformContract):
    pass


class TestPoison(OnSqlite, contracts.PoisonContract):
    pass


class TestProject(OnSqlite, contracts.ProjectContract):
    pass


class TestPruning(OnSqlite, contracts.PruningContract):
    pass


class TestRecording(OnSqlite, contracts.RecordingContract):
    pass


class TestRecovery(OnSqlite, contracts.RecoveryContract):
    pass


class TestReport(OnSqlite, contracts.ReportContract):
    pass


class TestSession(OnSqlite, contracts.SessionContract):
    pass


def test_no_contract_is_left_out() -> None:
    tried = {base for kind in OnSqlite.__subclasses__() for base in kind.__mro__}
    assert tried >= set(contracts.CONTRACTS)
