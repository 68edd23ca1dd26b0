"""A hub that was frozen until the others judged it lost wakes, holds nothing any more, and serves again (P4, P6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.harness.cluster import Cluster
from tests.harness.fixtures import tasks
from tests.harness.postgres import postgres, postgres_dsn, postgres_servers
from tests.harness.processes import eventually
from tests.harness.scenes import held_up

__all__ = ["postgres", "postgres_dsn", "postgres_servers", "tasks"]
pytestmark = pytest.mark.anyio


@pytest.fixture
async def cluster(tmp_path: Path, postgres_dsn: str) -> AsyncIterator[Cluster]:
    patient = {"dispatch.rolling_window": "60s", "dispatch.deadline": "120s"}
    async with Cluster(tmp_path, postgres_dsn, settings=patient) as made:
        yield made


async def test_it_forgets_what_it_held_and_its_caller_gets_the_true_answer(
    cluster: Cluster, tasks: anyio.abc.TaskGroup
) -> None:
    one, two, _ = cluster.hubs
    identity, bystander = await one.api.register_broker(), await one.api.register_broker()
    async with (
        cluster.broker(identity, first=one) as broker,
        cluster.broker(bystander, first=two, name="other") as other,
    ):
        for each in (broker, other):
            await each.seen(what="connected")
            await cluster.owner(each.broker_id)
        project = await one.api.create_project()
        agent = await one.api.create_agent(project, broker.broker_id)
        call, dispatch = await held_up(tasks, one.api, broker, "stop", agent, prefer="wait=60")
        assert one.child
        one.child.freeze()
        await two.api.broker_is(broker.broker_id, "offline")
        await broker.seen(what="connected", times=2)
        new = (await two.api.broker_is(broker.broker_id, "online"))["connectedHubId"]
        assert new != one.node

        async def lost() -> bool:
            return one.node not in {row["id"] for row in (await two.api.get("/nodes"))["nodes"]}

        await eventually(lost, "the frozen hub to be judged lost")
        await broker.release("slow")
        one.child.thaw()
        answer = (await call.answered()).expect(200)
        assert (answer.dispatch, answer.json["phase"]) == (dispatch, "stopped")

        async def back() -> bool:
            ready = (await one.api.ask("GET", "/readyz")).status == 200
            return ready and one.node in {row["id"] for row in (await two.api.get("/nodes"))["nodes"]}

        await eventually(back, "the woken hub among the others")
        row = await two.api.dispatch(dispatch)
        assert (row["state"], row["claimedBy"]) == ("done", new)
        assert len(broker.effects(op="stop")) == 1
        assert (await two.api.broker(broker.broker_id))["connectedHubId"] == new
        assert other.events(what="closed") == [], "whom it did not hold it harmed in nothing"
        assert "this node was judged lost" in one.log
