"""The database stands still, restarts, or cuts everybody off: nobody is judged by that gap, and no socket is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from kernel.testing.postgres import Server
from tests.harness.brokerprocess import BrokerProcess
from tests.harness.cluster import Cluster
from tests.harness.hubprocess import HubProcess
from tests.harness.processes import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


class Fleet:
    """Three hubs, each with a broker, and an agent on each."""

    def __init__(self, cluster: Cluster, brokers: list[BrokerProcess], agents: list[str]) -> None:
        self.cluster = cluster
        self.brokers = brokers
        self.agents = agents

    async def serves(self) -> None:
        """Through a hub that does not hold the broker, over the socket that it had."""
        one, two, three = self.cluster.hubs
        for agent, hub in zip(self.agents, (two, three, one), strict=True):

            async def served(agent: str = agent, hub: HubProcess = hub) -> bool:
                return (await hub.api.do("restart", agent, prefer="wait=20")).status == 200

            await eventually(served, "a call served")
        for broker in self.brokers:
            assert (await one.api.broker_is(broker.broker_id, "online"))["status"] == "online"
            assert broker.events(what="closed") == []
        assert len((await one.api.get("/nodes"))["nodes"]) == 3
        for hub in self.cluster.hubs:
            assert "is lost" not in hub.log
            assert "was judged lost" not in hub.log


@pytest.fixture
async def fleet(tmp_path: Path, server: Server) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(tmp_path, server.create_database("hubs")))
        api = cluster.hubs[0].api
        project = await api.create_project()
        brokers, agents = [], []
        for n, hub in enumerate(cluster.hubs):
            named = cluster.broker(await api.register_broker(), first=hub, name=f"broker-{n}")
            broker = await stack.enter_async_context(named)
            await broker.seen(what="connected")
            await cluster.owner(broker.broker_id)
            agents.append((await api.create_agent(project, broker.broker_id))["id"])
            brokers.append(broker)
        yield Fleet(cluster, brokers, agents)


@pytest.mark.parametrize(("seconds", "times"), [(1.7, 2), (7.0, 1)])
async def test_a_database_that_stands_still_costs_nobody_anything(
    fleet: Fleet, server: Server, seconds: float, times: int
) -> None:
    """Shorter and longer than what makes a node lost (2 s), a session stale (5 s), a call given up (5 s)."""
    for _ in range(times):
        server.freeze()
        await anyio.sleep(seconds)
        server.thaw()
        await fleet.serves()


async def test_a_database_that_restarts_costs_nobody_anything(fleet: Fleet, server: Server) -> None:
    server.restart("fast")
    await fleet.serves()
    server.restart("immediate")
    await fleet.serves()
    server.stop("immediate")
    await anyio.sleep(6)
    server.start()
    await fleet.serves()
