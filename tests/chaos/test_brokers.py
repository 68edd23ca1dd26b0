"""Brokers die, freeze and move from hub to hub under load (P1–P6)."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from kernel.testing.postgres import Server
from tests.chaos.faults import broker_frozen, broker_killed
from tests.chaos.load import under_load
from tests.chaos.storm import storm
from tests.chaos.world import World, world

pytestmark = pytest.mark.anyio
FLAPS = 50


async def watched(made: World, broker_id: str) -> None:
    """Looks at the broker as fast as a person never would, through every hub."""
    while True:
        for hub in made.hubs:
            seen = await hub.api.broker(broker_id)
            made.record("broker_status", broker=broker_id, status=seen["status"])
        await anyio.sleep(0.05)


async def test_brokers_die_and_stand_still(tmp_path: Path, server: Server) -> None:
    await storm(tmp_path, server, [broker_killed, broker_frozen, broker_killed], slow=0.5)


async def test_fifty_moves_between_two_hubs_while_work_flows(tmp_path: Path, server: Server) -> None:
    """The new socket stands before the old one ends: the broker is never told offline, and ends with the last one."""
    often = {"channel.claims": "1000/10s"}
    async with world(tmp_path, server, brokers=1, hubs=2, settings=often) as made:
        (broker,) = made.scripted
        async with anyio.create_task_group() as watching:
            watching.start_soon(watched, made, broker.broker_id)
            async with under_load(made):
                for n in range(FLAPS):
                    await broker.tell("dial", url=made.doors[n % 2].url)
            watching.cancel_scope.cancel()
        looks = [event["status"] for event in made.cluster.calls() if event["what"] == "broker_status"]
        assert len(looks) > FLAPS / 5
        assert set(looks) == {"online"}
        last = broker.events(what="connected")[-1]
        seen = await made.cluster.affinity(broker.broker_id)
        assert (seen["status"], seen["connectedHubId"]) == ("online", last["frame"]["nodeId"])
        assert (await broker.tell("state"))["open"] == [last["socket"]]
        await made.check()


async def test_two_processes_with_one_identity_are_told_and_served(tmp_path: Path, server: Server) -> None:
    async with world(tmp_path, server, brokers=1, agents=1) as made:
        (broker,) = made.scripted
        identity = {name: broker.settings[name] for name in ("broker_id", "secret")}
        urls = [door.url for door in reversed(made.doors)]
        async with made.cluster.broker(identity, name="copy", urls=urls, backoff=(0.05, 0.2)):

            async def told() -> bool:
                return bool((await made.cluster.affinity(broker.broker_id)).get("conflict"))

            with anyio.fail_after(30):
                while not await told():
                    await anyio.sleep(0.1)
            (agent,) = made.agents
            answer = await made.hubs[0].api.do("start", agent, prefer="deliver=hold, wait=20")
            answer.expect(200)
