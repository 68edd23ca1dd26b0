"""The long form: each fault alone, then storms of all of them. `make chaos` runs it."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from kernel.testing.postgres import Server
from tests.chaos.faults import ALL, BROKERS, HUBS, POOLED, Fault, plan
from tests.chaos.load import under_load
from tests.chaos.storm import storm
from tests.chaos.world import world

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.__name__)
async def test_each_fault_alone(tmp_path: Path, server: Server, fault: Fault) -> None:
    await storm(tmp_path, server, [fault, fault])


@pytest.mark.parametrize("seed", range(10, 20))
async def test_a_storm_of_everything(tmp_path: Path, server: Server, seed: int) -> None:
    await storm(tmp_path, server, plan(seed, ALL, 15), seed=seed)


@pytest.mark.parametrize("seed", range(20, 24))
async def test_a_storm_over_hubs_behind_a_pooler(tmp_path: Path, server: Server, seed: int) -> None:
    await storm(tmp_path, server, plan(seed, POOLED, 15), seed=seed, pooled=True)


@pytest.mark.parametrize("fault", [*HUBS, *BROKERS], ids=lambda fault: fault.__name__)
async def test_each_fault_alone_on_our_own_broker(tmp_path: Path, server: Server, fault: Fault) -> None:
    await storm(tmp_path, server, [fault, fault], brokers=1, own=1)


@pytest.mark.parametrize("seed", range(30, 35))
async def test_a_storm_over_our_own_broker(tmp_path: Path, server: Server, seed: int) -> None:
    """Beside a scripted one; every second time the hubs are behind a pooler."""
    pooled = seed % 2 == 1
    await storm(tmp_path, server, plan(seed, POOLED if pooled else ALL, 12), seed=seed, own=1, pooled=pooled)


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_over_stock_brokers(tmp_path: Path, server: Server, seed: int) -> None:
    await storm(tmp_path, server, plan(seed, ALL, 10), seed=seed, personality="stock")


async def test_a_failover_to_a_standby_that_missed_the_last_commits(tmp_path: Path) -> None:
    """What was acknowledged after the standby heard the last is gone; everything else is kept, also the fence."""
    with Server() as primary, primary.standby() as standby:
        async with world(tmp_path, primary, standby=standby) as made, under_load(made) as load:
            await anyio.sleep(1.5)
            missed = time.monotonic()
            standby.catch_up()
            standby.detach()
            await made.scripted[0].tell("dial")  # an epoch that the standby never hears of
            await anyio.sleep(1.5)
            primary.kill()
            standby.promote()
            await anyio.sleep(0.5)  # answers that were under way are read
            made.server, made.crashed, made.forgotten = standby, True, (missed, time.monotonic())
            await anyio.sleep(4)
            load.over.set()
            await made.check()
