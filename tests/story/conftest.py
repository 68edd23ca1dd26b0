"""Stories about one hub, seen from outside: what they start with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.harness.fixtures import alone, hub, ours, stock, tasks
from tests.harness.hubprocess import HubProcess
from tests.harness.scenes import Scene, shared_scene

__all__ = ["alone", "hub", "ours", "stock", "tasks"]


@pytest.fixture(scope="session")
async def edge(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One broker and project for the many bad requests, which leave nothing behind."""
    async with shared_scene(hub, tmp_path_factory.mktemp("input")) as made:
        yield made
