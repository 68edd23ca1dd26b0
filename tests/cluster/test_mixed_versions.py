"""Old and new hubs together: an operation that only the new one knows waits for it, and disturbs nobody meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.harness.cluster import Cluster
from tests.harness.hubclient import Json
from tests.harness.older import VERSION
from tests.harness.processes import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def cluster(tmp_path: Path, postgres_dsn: str) -> AsyncIterator[Cluster]:
    mixed = Cluster(tmp_path, postgres_dsn, hubs=2)
    mixed.hubs[0].does_not_know = "suspend"
    async with mixed:
        yield mixed


async def test_what_only_the_new_hub_knows_waits_until_that_holds_the_broker(cluster: Cluster) -> None:
    old, new = cluster.hubs
    identity = await new.api.register_broker()
    async with cluster.broker(identity, first=old) as broker:
        assert await cluster.owner(broker.broker_id) is old
        project = await new.api.create_project()
        agent, other = [await new.api.create_agent(project, broker.broker_id) for _ in range(2)]
        call = await new.api.do("suspend", agent["id"], prefer="respond-async, deliver=hold")
        behind = await new.api.do("stop", agent["id"], prefer="respond-async, deliver=hold")

        async def explained() -> Json | None:
            told = await new.api.explain(call.dispatch)
            return told if f"it runs version {VERSION}" in told["sentence"] else None

        told = await eventually(explained, "the version named")
        assert "does not know the operation suspend" in told["sentence"]
        assert told["code"] == "waiting_owner"

        (await new.api.do("restart", other["id"])).expect(200)
        (await old.api.message(agent["id"], "hello", prefer="wait=20")).expect(200)
        for hub in (old, new):
            rows = await hub.api.all_dispatches(agentId=agent["id"], state="pending")
            assert [row["op"] for row in rows] == ["stop", "suspend"]
            assert (await hub.api.explain(call.dispatch))["state"] == "pending"
        await anyio.sleep(1.5)  # sweeps of both hubs came by
        assert old.alive
        assert broker.events(what="request", op="suspend") == []

        assert await old.terminate(patience=40) == 0
        assert await cluster.owner(broker.broker_id) is new
        assert (await new.api.ended(call.dispatch))["state"] == "done"
        assert (await new.api.ended(behind.dispatch))["state"] == "done"
        assert [event["op"] for event in broker.effects(agent=agent["slug"])] == [
            "create",
            "message",
            "suspend",
            "stop",
        ]
