"""Hubs are stopped and started one after the other under load: nothing is lost, and no broker is left alone (P9)."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from broker.identity import Identity, save_identity
from tests.harness.brokerprocess import BrokerProcess
from tests.harness.checker import check
from tests.harness.cluster import Cluster
from tests.harness.fixtures import tasks
from tests.harness.history import gaps
from tests.harness.hubclient import Answered, HubClient, Json
from tests.harness.hubprocess import POINTSMAN
from tests.harness.insisting import Callers
from tests.harness.postgres import postgres, postgres_dsn, postgres_servers
from tests.harness.processes import Child, eventually
from tests.harness.run import Run
from tests.harness.scenes import held_up

__all__ = ["postgres", "postgres_dsn", "postgres_servers", "tasks"]
pytestmark = pytest.mark.anyio


@pytest.fixture
async def cluster(tmp_path: Path, postgres_dsn: str) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, postgres_dsn, settings={"node.drain": "15s", "dispatch.http_wait": "4s"}) as made:
        yield made


async def ask(api: HubClient, agent: str, number: int, key: str) -> Answered:
    """A message, and every fourth time a restart."""
    if number % 4:
        return await api.message(agent, f"m{number}", idempotency_key=key)
    return await api.do("restart", agent, idempotency_key=key)


async def all_done(cluster: Cluster, callers: Callers) -> None:
    api = cluster.alive[0].api
    for dispatch in callers.told:
        assert (await api.ended(dispatch))["state"] == "done"
        await anyio.sleep(0.001)  # one caller may ask a thousand times a second


async def restart_each(cluster: Cluster, between: float) -> None:
    for hub in cluster.hubs:
        began = time.monotonic()
        assert await hub.terminate(patience=40) == 0
        print(f"{hub.child and hub.child.log.parent.name} stopped in {time.monotonic() - began:.2f} s")
        await hub.restart()
        await anyio.sleep(between)


def part_of(cluster: Cluster, broker: BrokerProcess, rows: list[Json], agents: set[str], *, dedupes: bool) -> Run:
    mine = {row["id"] for row in rows}
    calls = cluster.calls()
    answered = {event["call"] for event in calls if event["what"] == "answered" and event.get("dispatch") in mine}
    known = [one for one in calls if one.get("agent") in agents or one.get("call") in answered or not one.get("call")]
    asked = {one.get("call") for one in known}
    return Run(
        calls=[one for one in calls if one.get("call") in asked],
        broker=broker.history(),
        rows=rows,
        dedupes=dedupes,
    )


async def online(cluster: Cluster, broker: BrokerProcess) -> None:
    await broker.seen(what="connected")
    await cluster.owner(broker.broker_id)


async def test_a_rolling_restart_under_load_loses_nothing(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        api = cluster.hubs[0].api
        project = await api.create_project()
        brokers: list[BrokerProcess] = []
        agents: dict[str, set[str]] = {}
        for n in range(7):
            identity = await api.register_broker()
            first, kind = cluster.hubs[n % 3], "stock" if n == 6 else "ours"
            broker = await stack.enter_async_context(
                cluster.broker(identity, first=first, name=f"{kind}-{n}", personality=kind)
            )
            await online(cluster, broker)
            made = [await api.create_agent(project, broker.broker_id) for _ in range(2)]
            agents[broker.broker_id] = {agent["id"] for agent in made}
            brokers.append(broker)
        callers = Callers(cluster, ask)
        async with callers.on([agent for of_one in agents.values() for agent in of_one]):
            await anyio.sleep(1)
            await restart_each(cluster, between=1)
        await all_done(cluster, callers)
        longest = {}
        for broker in brokers:
            rows = await cluster.alive[0].api.all_dispatches(brokerId=broker.broker_id)
            ours = broker.settings["personality"] == "ours"
            check(part_of(cluster, broker, rows, agents[broker.broker_id], dedupes=ours))
            longest[broker.directory.name] = max(gaps(broker.history()), default=0.0)
            advised = [one for one in broker.events(what="in") if _is_advice(one["frame"])]
            assert bool(advised) == ours
        print(f"{len(callers.told)} acknowledged, {callers.repeated} repeated; longest gap of each broker: {longest}")
        assert len(callers.told) > 100
        of_ours = [gap for name, gap in longest.items() if name.startswith("ours")]
        assert max(of_ours) < 1.0, "each dialled the next hub before it left"
        assert max(longest.values()) < 10.0, "a stock broker dials when it was closed"


def _is_advice(frame: Any) -> bool:
    """Alone, or in one write with others."""
    return any(one.get("type") == "reconnect" for one in (frame if isinstance(frame, list) else [frame]))


async def test_our_broker_dials_the_next_hub_before_it_leaves(cluster: Cluster, tmp_path: Path) -> None:
    """The broker that ships, with agents that run."""
    api = cluster.hubs[0].api
    identity = await api.register_broker()
    folder = tmp_path / "ours"
    folder.mkdir(mode=0o700)
    save_identity(folder, Identity(broker_id=identity["broker_id"], secret=identity["secret"], name="ours"))
    urls = [part for hub in cluster.hubs for part in ("--hub", hub.url)]
    arguments = [str(POINTSMAN), "broker", "run", "--dir", str(folder), "--stop-agents", *urls]
    child = Child(arguments, tmp_path / "broker.log", cwd=tmp_path)
    try:
        await api.broker_is(identity["broker_id"], "online")
        project = await api.create_project()
        config = {"command": ["sh", "-c", "while read line; do :; done"]}
        made = [await api.create_agent(project, identity["broker_id"], config=config) for _ in range(3)]
        callers = Callers(cluster, ask)
        async with callers.on([agent["id"] for agent in made]):
            await anyio.sleep(1)
            await restart_each(cluster, between=1)
        await all_done(cluster, callers)
        told = [float(gap) for gap in re.findall(r"connected to .* gap (\d+\.\d+) s", child.log.read_text())]
        print(f"{len(callers.told)} acknowledged, {callers.repeated} repeated; gaps {told}")
        assert len(told) >= 3
        assert max(told) < 1.0, "the next session is claimed before the last one goes"
    except BaseException:
        print(child.tail())
        raise
    finally:
        child.stop(patience=15)


async def test_a_local_call_whose_socket_moves_gives_its_caller_the_true_answer(
    cluster: Cluster, tasks: anyio.abc.TaskGroup
) -> None:
    """It was sent without a row; its hub is stopped; the next hub sends it again, and the broker joins it."""
    one, two, _ = cluster.hubs
    identity = await one.api.register_broker()
    async with cluster.broker(identity, first=one) as broker:
        await online(cluster, broker)
        project = await one.api.create_project()
        agent = await one.api.create_agent(project, broker.broker_id)
        call, dispatch = await held_up(tasks, one.api, broker, "stop", agent, prefer="wait=60")
        assert (await two.api.ask("GET", f"/dispatches/{dispatch}")).status == 404, "LOCAL: no row yet"
        assert one.child
        one.child.send(signal.SIGTERM)
        await broker.seen(what="joined", dispatch=dispatch)
        asked = broker.events(what="request", dispatch=dispatch)
        assert [event["attempt"] for event in asked] == [1, 2]
        assert asked[0]["socket"] == 1 < asked[1]["socket"], "a dial may need a second try"
        await broker.release("slow")
        answer = (await call.answered()).expect(200)
        assert (answer.dispatch, answer.json["phase"]) == (dispatch, "stopped")
        assert await one.child.ended() == 0
        row = await two.api.dispatch(dispatch)
        assert (row["state"], row["attempts"], row["claimedBy"]) == (
            "done",
            2,
            (await cluster.owner(broker.broker_id)).node,
        )
        assert len(broker.effects(op="stop")) == 1


async def test_a_drained_hub_hands_its_brokers_over_and_stays(cluster: Cluster) -> None:
    one, two, _ = cluster.hubs
    identity = await one.api.register_broker()
    async with cluster.broker(identity, first=one) as broker:
        await online(cluster, broker)
        assert (await cluster.owner(broker.broker_id)) is one
        (await two.api.ask("POST", f"/nodes/{one.node}/drain")).expect(202)
        await broker.seen(what="connected", times=2)

        async def moved() -> bool:
            return (await cluster.owner(broker.broker_id)) is not one

        await eventually(moved, "another owner")
        rows = {row["id"]: row for row in (await two.api.get("/nodes"))["nodes"]}
        assert (rows[one.node]["draining"], rows[one.node]["brokers"]) == (True, 0)
        assert (await one.api.ask("GET", "/readyz")).expect(503).code == "draining"
        assert one.alive
        assert max(gaps(broker.history()), default=0.0) < 1.0
        assert await one.terminate() == 0
        assert one.node not in {row["id"] for row in (await two.api.get("/nodes"))["nodes"]}
