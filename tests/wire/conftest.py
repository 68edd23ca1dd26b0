"""The wire between hub and broker, seen from outside: what these tests start with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.fixtures import hub, ours, tasks
from tests.harness.history import History
from tests.harness.hubclient import HubClient
from tests.harness.hubprocess import HubProcess

__all__ = ["hub", "ours", "tasks"]


@pytest.fixture
async def api(hub: HubProcess, tmp_path: Path) -> AsyncIterator[HubClient]:
    client = HubClient(hub.url, hub.ready["token"], History(tmp_path / "calls.jsonl"))
    yield client
    await client.close()
