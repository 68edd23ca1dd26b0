"""The fixtures of every storage contract: a backend's test overrides `storage`, and nothing else."""

from __future__ import annotations

import pytest

from kernel.storage import Storage
from kernel.testing.storage.world import World


class StorageContract:
    """Subclass it, give it the fixture `storage`, and pytest puts the backend through it."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def storage(self) -> Storage:
        """An open, migrated and empty backend; the fixture that overrides it closes it after the test."""
        raise NotImplementedError("a backend's test gives its own `storage`")

    @pytest.fixture
    async def world(self, storage: Storage) -> World:
        return await World.built(storage)
