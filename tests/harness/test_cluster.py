"""Several hubs on one database come up together, see each other, and are told apart in the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.cluster import Cluster

pytestmark = pytest.mark.anyio


async def test_three_hubs_start_together_and_hand_a_broker_over(tmp_path: Path, postgres_dsn: str) -> None:
    async with Cluster(tmp_path, postgres_dsn) as cluster:
        one, two, three = cluster.hubs
        identity = await one.api.register_broker()
        async with cluster.broker(identity, first=two) as broker:
            assert await cluster.owner(broker.broker_id) is two
            project = await one.api.create_project()
            agent = await three.api.create_agent(project, broker.broker_id)
            (await one.api.do("stop", agent["id"])).expect(200)
            two.kill()
            assert await cluster.owner(broker.broker_id) is not two
            (await one.api.do("start", agent["id"])).expect(200)
        asked = [event["hub"] for event in cluster.calls() if event.get("op") and event["what"] == "call"]
        assert asked == ["hub-2", "hub-0", "hub-0"]


async def test_a_hub_with_a_wrong_clock_serves_with_the_others(tmp_path: Path, postgres_dsn: str) -> None:
    cluster = Cluster(tmp_path, postgres_dsn, hubs=2)
    cluster.hubs[1].clock_off_by = -300
    async with cluster:
        identity = await cluster.hubs[0].api.register_broker()
        async with cluster.broker(identity, first=cluster.hubs[0]) as broker:
            await cluster.owner(broker.broker_id)
            project = await cluster.hubs[1].api.create_project()
            await cluster.hubs[1].api.create_agent(project, broker.broker_id)
