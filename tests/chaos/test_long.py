"""The long form: each fault alone, then storms of all of them. `make chaos` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.testing.postgres import Server
from tests.chaos.faults import ALL, Fault, plan
from tests.chaos.storm import storm

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.__name__)
async def test_each_fault_alone(tmp_path: Path, server: Server, fault: Fault) -> None:
    await storm(tmp_path, server, [fault, fault])


@pytest.mark.parametrize("seed", range(10, 20))
async def test_a_storm_of_everything(tmp_path: Path, server: Server, seed: int) -> None:
    await storm(tmp_path, server, plan(seed, ALL, 15), seed=seed)


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_over_stock_brokers(tmp_path: Path, server: Server, seed: int) -> None:
    await storm(tmp_path, server, plan(seed, ALL, 10), seed=seed, personality="stock")
