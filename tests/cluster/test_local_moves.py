"""A LOCAL call, sent without a row, whose broker moves to another hub: recorded, driven again, truly answered (P6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.harness.cluster import Cluster
from tests.harness.fixtures import tasks
from tests.harness.scenes import held_up

__all__ = ["tasks"]
pytestmark = pytest.mark.anyio

BY_SIGNAL_ALONE = {"bus.poll_healthy": "10m", "bus.poll_slow": "10m", "dispatch.rolling_window": "30s"}


@pytest.fixture
async def cluster(tmp_path: Path, postgres_dsn: str) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, postgres_dsn, hubs=2, settings=BY_SIGNAL_ALONE) as made:
        yield made


async def test_its_next_hub_hears_of_it_and_its_caller_of_the_end(cluster: Cluster, tasks: anyio.abc.TaskGroup) -> None:
    one, two = cluster.hubs
    identity = await one.api.register_broker()
    async with cluster.broker(identity, first=one, urls=[one.url]) as broker:
        await broker.seen(what="connected")
        await cluster.owner(broker.broker_id)
        agent = await one.api.create_agent(await one.api.create_project(), broker.broker_id)
        call, dispatch = await held_up(tasks, one.api, broker, "stop", agent, prefer="wait=25")
        await broker.tell("dial", url=two.url)
        assert (await broker.seen(what="closed", socket=1))["code"] == 4409
        await broker.seen(what="joined", dispatch=dispatch)
        await broker.release("slow")
        answer = (await call.answered()).expect(200)
        assert (answer.dispatch, answer.json["phase"]) == (dispatch, "stopped")
        row = await two.api.dispatch(dispatch)
        assert (row["state"], row["nodeId"]) == ("done", one.node)
        assert row["attempts"] >= 2, "the broker, which knows the first hub alone, may dial that again"
        assert len(broker.effects(op="stop")) == 1
