"""Fixtures of the black-box tests; a `conftest.py` imports those that it offers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup

from tests.harness.hubprocess import HubProcess
from tests.harness.scenes import Scene, own_scene, shared_scene


@pytest.fixture(scope="session")
async def hub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HubProcess]:
    """One hub for the stories in which no hub dies."""
    async with HubProcess(tmp_path_factory.mktemp("hub")) as served:
        yield served


@pytest.fixture
async def ours(hub: HubProcess, tmp_path: Path) -> AsyncIterator[Scene]:
    """A connected broker with all capabilities, on the shared hub."""
    async with shared_scene(hub, tmp_path) as made:
        yield made


@pytest.fixture
async def stock(hub: HubProcess, tmp_path: Path) -> AsyncIterator[Scene]:
    """A connected stock broker, on the shared hub."""
    async with shared_scene(hub, tmp_path, personality="stock") as made:
        yield made


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Scene]:
    """A connected broker of ours with a hub of its own, which may be killed."""
    async with own_scene(tmp_path) as made:
        yield made


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    """Calls that go on while the story does; what still runs at its end is cancelled."""
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()
