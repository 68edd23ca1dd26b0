"""One scripted hub and one real broker for all tests of a module, each with agents of its own: the module imports
`broker`, `hub` and `shared`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub, fake_hub


class Pair:
    """A hub and a broker that several tests use, each with agents of its own."""

    def __init__(self, hub: FakeHub, broker: BrokerProcess) -> None:
        self.hub = hub
        self.broker = broker


@pytest.fixture(scope="module")
async def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """One for a whole module, with the module's SETTINGS and ENVIRONMENT."""
    async with fake_hub() as made:
        process = BrokerProcess(tmp_path_factory.mktemp("shared"), made)
        await process.begin(getattr(request.module, "ENVIRONMENT", None), **getattr(request.module, "SETTINGS", {}))
        yield Pair(made, process)
        process.sweep()


@pytest.fixture(scope="module")
def hub(shared: Pair) -> FakeHub:
    return shared.hub


@pytest.fixture(scope="module")
def broker(shared: Pair) -> BrokerProcess:
    return shared.broker
