"""Why a call still waits, asked of a hub that has nothing to do with it, while its owner dies (P10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio.to_thread
import pytest

from tests.harness.cluster import Cluster
from tests.harness.command_line import pointsman
from tests.harness.hubclient import HubClient, Json
from tests.harness.processes import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def cluster(tmp_path: Path, postgres_dsn: str) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, postgres_dsn, hubs=3) as made:
        yield made


async def says(client: HubClient, dispatch: str, *words: str) -> Json:
    """Its explanation, once that holds all these words."""

    async def probe() -> Json | None:
        told = await client.explain(dispatch)
        return told if all(word in told["sentence"] for word in words) else None

    return await eventually(probe, f"an explanation of {dispatch} with {words}")


async def test_a_killed_owner_is_told_in_every_stage_and_stands_in_the_timeline(
    cluster: Cluster, tmp_path: Path
) -> None:
    entry, owner, third = cluster.hubs
    identity = await entry.api.register_broker()
    async with cluster.broker(identity, first=owner) as broker:
        assert await cluster.owner(broker.broker_id) is owner
        agent = await entry.api.create_agent(await entry.api.create_project(), broker.broker_id)
        await broker.rule(op="restart", gate="slow")
        call = await entry.api.do("restart", agent["id"], prefer="respond-async")
        await broker.seen(what="effect", op="restart")
        held = await entry.api.do("stop", agent["id"], prefer="respond-async, deliver=hold")
        behind = await says(third.api, held.dispatch, f"The restart {call.dispatch} of the same agent comes first")
        assert (behind["code"], behind["behind"]) == ("waiting_lane", {"id": call.dispatch, "op": "restart"})
        at_work = await says(third.api, call.dispatch, f"Hub {owner.node} took it")
        assert at_work["owner"]["nodeId"] == owner.node

        await broker.tell("auto", on=False)
        owner.kill()
        lost = await says(third.api, call.dispatch, f"Hub {owner.node}, which was last heard of", "driven again by")
        assert lost["code"] == "waiting_owner"
        assert lost["nextAttemptAt"]
        away = await says(third.api, call.dispatch, "is not connected since")
        assert away["code"] == "waiting_broker"

        await broker.connect(third.url)
        await broker.release("slow")
        assert (await entry.api.ended(call.dispatch))["state"] == "done"
        assert "at the 2nd attempt" in (await third.api.explain(call.dispatch))["sentence"]
        assert (await entry.api.ended(held.dispatch))["state"] == "done"

    told = await command(third.url, third.ready["token"], tmp_path, "dispatch", "show", call.dispatch, "--timeline")
    assert told[0].startswith(f"restart {agent['slug']} {call.dispatch}: done; accepted ")
    whats = [" ".join(line.split()[4:]) for line in told[1:-3]]
    assert whats[:3] == [
        "accepted, route forward (held elsewhere); hub B is woken once it is recorded",
        "recorded",
        "claimed: attempt 1, epoch 1",
    ]
    assert "put back: its hub was lost" in whats
    assert whats[-1] == "done: answered"
    assert told[-3:] == [f"A = hub {entry.node}", f"B = hub {owner.node}", f"C = hub {third.node}"]


async def command(url: str, token: str, cwd: Path, *arguments: str) -> list[str]:
    asked = partial(pointsman, *arguments, cwd=cwd, extra={"POINTSMAN_HUB": url, "POINTSMAN_TOKEN": token})
    ran = await anyio.to_thread.run_sync(asked)
    assert ran.status == 0, ran.err
    return ran.out.splitlines()
