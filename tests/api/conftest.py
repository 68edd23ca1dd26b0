"""The HTTP API seen from outside: one hub, one broker that a test can script."""

from __future__ import annotations

import pytest

from tests.harness.fixtures import hub, ours, tasks
from tests.harness.hubclient import HubClient
from tests.harness.hubprocess import HubProcess

__all__ = ["hub", "ours", "tasks"]


@pytest.fixture
def api(hub: HubProcess) -> HubClient:
    return hub.api
