"""A broker without a socket and several hubs: one of them calls its endpoint, and another when that one is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.broker.agents import DEAF, ECHO
from tests.harness.cluster import Cluster
from tests.harness.directbroker import DirectScene, direct_scene
from tests.harness.fixtures import tasks
from tests.harness.hubclient import Json
from tests.harness.hubprocess import HubProcess
from tests.harness.processes import eventually
from tests.harness.scenes import Background

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

__all__ = ["tasks"]
pytestmark = pytest.mark.anyio


@pytest.fixture
async def cluster(tmp_path: Path, postgres_dsn: str) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path / "hubs", postgres_dsn, settings={"channel.direct_idle": "3s"}) as started:
        yield started


@pytest.fixture
async def direct(cluster: Cluster, tmp_path: Path) -> AsyncIterator[DirectScene]:
    async with direct_scene(cluster.hubs[0].api, tmp_path / "far", running=False) as made:
        await made.broker.start([hub.url for hub in cluster])
        yield made


async def stops(direct: DirectScene, agent_id: str) -> list[Json]:
    return [row for row in await direct.api.all_dispatches(agentId=agent_id) if row["op"] == "stop"]


async def holder(cluster: Cluster, direct: DirectScene) -> HubProcess:
    hub = cluster.of_node((await direct.held())["connectedHubId"])
    assert hub
    return hub


async def test_calls_through_all_hubs_at_once_are_one_claim(cluster: Cluster, direct: DirectScene) -> None:
    agents = [await direct.agent(ECHO) for _ in range(6)]
    await direct.let_go()
    before = (await direct.api.all_dispatches(brokerId=direct.broker.id))[0]["claimedEpoch"]
    rows: list[Json] = []

    async def stop(hub: HubProcess, agent: Json) -> None:
        answer = (await hub.api.do("stop", agent["id"], prefer="wait=30")).expect(200)
        rows.append(await hub.api.dispatch(answer.dispatch))

    async with anyio.create_task_group() as calls:
        for n, agent in enumerate(agents):
            calls.start_soon(stop, cluster.hubs[n % 3], agent)
    assert [(row["state"], row["attempts"]) for row in rows] == [("done", 1)] * len(agents)
    assert {row["claimedEpoch"] for row in rows} == {before + 1}
    assert len({row["claimedBy"] for row in rows}) == 1
    assert len({row["nodeId"] for row in rows}) == 3
    assert (await direct.row())["status"] == "offline"


@pytest.mark.parametrize("how", ["kill", "freeze", "terminate"])
async def test_when_the_hub_that_calls_is_gone_another_calls_and_the_caller_hears_the_end(
    cluster: Cluster, direct: DirectScene, tasks: TaskGroup, how: str
) -> None:
    agent = await direct.agent(DEAF, stopGrace="4s")
    await eventually(_in_log(direct, agent["id"], "deaf"), "the agent ignores TERM")
    caller = await holder(cluster, direct)
    [asked, _] = cluster.others(caller)
    direct.api = asked.api
    call = Background()
    tasks.start_soon(call.run, lambda: asked.api.do("stop", agent["id"], prefer="wait=50"))

    async def under_way() -> bool:
        return any(row["acceptedAt"] for row in await stops(direct, agent["id"]))

    await eventually(under_way, "the broker works at the stop")
    await _gone(caller, how)
    answer = (await call.answered()).expect(200)
    row = await asked.api.dispatch(answer.dispatch)
    assert (row["state"], row["error"]) == ("done", None)
    assert len(direct.broker.runs(agent["id"])) == 1
    if how == "freeze":
        assert row["claimedBy"] != caller.node
        caller.thaw()
        (await asked.api.do("start", agent["id"], prefer="wait=30")).expect(200)


async def test_a_message_to_any_hub_reaches_the_agent_once(cluster: Cluster, direct: DirectScene) -> None:
    agent = await direct.agent(ECHO)
    sent = [
        (await hub.api.message(agent["id"], f"from {n} by {hub.name}")).expect(202).dispatch
        for n in range(4)
        for hub in cluster
    ]
    for dispatch in sent:
        assert (await direct.api.ended(dispatch))["state"] == "done"
    for text in (f"from {n} by {hub.name}" for n in range(4) for hub in cluster):
        await eventually(_in_log(direct, agent["id"], f'"message":"{text}"'), f"the agent has read {text}")
        assert direct.broker.log_of(agent["id"]).count(f'"message":"{text}"') == 1


async def _gone(hub: HubProcess, how: str) -> None:
    match how:
        case "kill":
            hub.kill()
        case "freeze":
            hub.freeze()
        case _:
            await hub.terminate()


def _in_log(direct: DirectScene, agent_id: str, text: str) -> Any:
    async def found() -> bool:
        return text in direct.broker.log_of(agent_id)

    return found
