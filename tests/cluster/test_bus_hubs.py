"""What one hub is asked reaches the hub that holds the broker, by a signal; and without any, by the poll."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest

from kernel.testing.postgres import Server
from tests.harness.brokerprocess import BrokerProcess
from tests.harness.cluster import Cluster
from tests.harness.hubclient import Json
from tests.harness.hubprocess import HubProcess
from tests.harness.processes import eventually
from tests.harness.proxy import Proxy

pytestmark = pytest.mark.anyio

BY_SIGNAL_ALONE = {
    "bus.poll_healthy": "10m",
    "bus.poll_slow": "10m",
    "channel.renew": "60s",
    "channel.stale_after": "150s",
    "sweep.nodes": "60s",
}
"""Nothing else would tell the holder within the patience of a test."""


@pytest.fixture(scope="module")
def database(postgres: Server) -> Iterator[str]:
    yield postgres.create_database("bus_hubs")
    postgres.drop_database("bus_hubs")


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory, database: str) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("hubs"), database, hubs=2, settings=BY_SIGNAL_ALONE) as made:
        yield made


async def agent_of(hub: HubProcess, identity: Json) -> Json:
    return await hub.api.create_agent(await hub.api.create_project(), identity["broker_id"])


@asynccontextmanager
async def held_by(holder: HubProcess, cluster: Cluster, name: str) -> AsyncIterator[tuple[BrokerProcess, Json]]:
    """A broker whose socket this hub holds, and an agent of it; both were made on another."""
    (asked,) = cluster.others(holder)
    identity = await asked.api.register_broker()
    async with cluster.broker(identity, first=holder, name=name) as broker:
        assert await cluster.owner(broker.broker_id) is holder
        yield broker, await agent_of(asked, identity)


async def test_deletion_on_one_hub_closes_the_socket_on_another(cluster: Cluster) -> None:
    one, two = cluster.hubs
    async with held_by(two, cluster, "deleted") as (broker, agent):
        # served and gone: no claim is under way that would notice first
        (await one.api.delete(agent["id"])).expect(200, 204)
        (await one.api.ask("DELETE", f"/runtime-brokers/{broker.broker_id}")).expect(204)
        closed = await broker.seen(what="closed")
        assert (closed["code"], closed["reason"]) == (4410, "deleted")


async def test_new_secret_from_one_hub_closes_the_socket_of_the_old_one_on_another(cluster: Cluster) -> None:
    one, two = cluster.hubs
    identity = await one.api.register_broker("joined-again")
    async with cluster.broker(identity, first=two, name="joined-again") as broker:
        assert await cluster.owner(identity["broker_id"]) is two
        await one.api.register_broker("joined-again", brokerId=identity["broker_id"])
        closed = await broker.seen(what="closed")
        assert (closed["code"], closed["reason"]) == (4410, "secret_revoked")


async def test_socket_that_moved_is_closed_by_the_hub_that_held_it(cluster: Cluster) -> None:
    one, two = cluster.hubs
    identity = await one.api.register_broker()
    async with cluster.broker(identity, first=one, name="first") as first:
        assert await cluster.owner(identity["broker_id"]) is one
        async with cluster.broker(identity, urls=[two.url], name="second"):
            closed = await first.seen(what="closed")
            assert (closed["code"], closed["reason"]) == (4409, "replaced")
            await first.tell("auto", on=False)


async def test_pause_and_resume_on_one_hub_reach_the_holder(cluster: Cluster) -> None:
    one, two = cluster.hubs
    async with held_by(two, cluster, "paused") as (broker, agent):
        path = f"/runtime-brokers/{broker.broker_id}"
        (await one.api.ask("POST", f"{path}/pause")).expect(200)
        held = await two.api.message(agent["id"], "not now", prefer="respond-async")
        await anyio.sleep(0.5)
        assert broker.events(what="request", dispatch=held.dispatch) == []
        (await one.api.ask("POST", f"{path}/resume")).expect(200)
        assert (await one.api.ended(held.dispatch))["state"] == "done"


async def test_cancel_on_one_hub_reaches_the_broker_through_another(cluster: Cluster) -> None:
    one, two = cluster.hubs
    async with held_by(two, cluster, "cancelled") as (broker, agent):
        await broker.rule(op="restart", gate="slow", effect="after")
        answer = await one.api.do("restart", agent["id"], prefer="respond-async")
        await broker.seen(what="request", op="restart")
        assert (await one.api.cancel(answer.dispatch)).expect(200).json["outcome"] == "cancel_requested"
        assert (await one.api.ended(answer.dispatch))["state"] == "cancelled"


async def test_end_on_one_hub_is_told_to_the_caller_on_another(cluster: Cluster) -> None:
    """It comes when all looks of the caller are over and no poll will be for minutes."""
    one, two = cluster.hubs
    async with held_by(two, cluster, "slow") as (broker, agent):
        await broker.rule(op="restart", delay=2.0)
        started = time.monotonic()
        (await one.api.do("restart", agent["id"], prefer="wait=30")).expect(200)
        assert time.monotonic() - started < 20


# -- a hub that hears nothing ------------------------------------------------------------------------------------


async def test_hub_that_hears_nothing_says_so_and_its_calls_end_all_the_same(
    tmp_path_factory: pytest.TempPathFactory, postgres: Server, postgres_dsn: str
) -> None:
    """P8: the holder's listener is cut off in silence. Work reaches it by its poll, and no call goes out unrecorded."""
    with Proxy(postgres.port) as way:
        listen = [postgres_dsn, postgres_dsn.replace(f":{postgres.port}/", f":{way.port}/")]
        folder = tmp_path_factory.mktemp("deaf")
        async with Cluster(folder, postgres_dsn, hubs=2, listen_dsn=listen) as cluster:
            one, two = cluster.hubs
            identity = await one.api.register_broker()
            async with cluster.broker(identity, first=two):
                assert await cluster.owner(identity["broker_id"]) is two
                agent = await agent_of(one, identity)
                way.stall("down")
                told = await blind(two)
                assert "listen" in told
                assert (await one.api.ask("GET", "/readyz")).expect(200).json["bus"] in ("healthy", "slow")
                assert 'pointsman_bus_state{state="blind"} 1.0' in (await two.api.ask("GET", "/metrics")).text
                took = []
                for hub in (one, two, one, two):
                    started = time.monotonic()
                    answer = await hub.api.do("restart", agent["id"])
                    answer.expect(200)
                    took.append(time.monotonic() - started)
                    steps = [step["to"] for step in (await hub.api.explain(answer.dispatch))["transitions"]]
                    assert "pending" in steps, "it was recorded before it went out"
                assert max(took) < 3, "the poll finds it, not the end of a wait"
                way.heal()
                await ready(two)


async def blind(hub: HubProcess) -> str:
    """Until `/readyz` says what is wrong with its bus."""

    async def told() -> str | None:
        answer = await hub.api.ask("GET", "/readyz")
        checks: Json = (answer.json["error"].get("details") or {}).get("checks", {}) if answer.status == 503 else {}
        return checks.get("bus")

    return await eventually(told, "a hub that is blind")


async def ready(hub: HubProcess) -> None:
    async def yes() -> bool:
        return (await hub.api.ask("GET", "/readyz")).status == 200

    await eventually(yes, "a hub that is ready again")
