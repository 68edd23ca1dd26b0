"""The fence: what a hub that lost this broker still sends is refused."""

from __future__ import annotations

import pytest

from tests.broker.agents import DEAF, Agent, processes_with
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub

pytestmark = pytest.mark.anyio
INFO = "/api/v1/info"


async def test_a_new_id_under_an_old_epoch_is_refused_and_not_run(hub: FakeHub, broker: BrokerProcess) -> None:
    hub.epoch = 40
    await broker.again()
    agent = Agent(hub)
    refused = await agent.create(epoch=40)
    assert (refused.status, refused.code) == (412, "stale_epoch")
    assert processes_with(agent.id) == []
    assert (await hub.ask("GET", INFO, epoch=40)).status == 412
    assert (await agent.create(epoch=41)).status == 201


async def test_the_highest_epoch_is_kept_on_disk(hub: FakeHub, broker: BrokerProcess) -> None:
    assert hub.lines[0].connect.get("lastEpoch", 0) == 0
    hub.epoch = 1_000
    await broker.again()
    assert (await hub.ask("GET", INFO)).status == 200  # the epoch is on disk before the first request is read
    hub.epoch = 5
    await broker.again()
    assert hub.newest.connect["lastEpoch"] == 1_001
    assert (await hub.ask("GET", INFO, epoch=6)).status == 412
    instances = [line.connect["instance"] for line in hub.lines]
    assert len(set(instances)) == 3


async def test_what_waits_under_an_epoch_that_became_old_is_not_run(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(DEAF, config={"stopGrace": "700ms"})
    await agent.logged("deaf")
    stop = agent.asking("stop")
    start = agent.asking("start", agent.body({"command": ["cat"]}))
    old = hub.newest
    await hub.send(stop)
    await hub.send(start)
    await hub.send({"type": "reconnect", "afterMs": 0, "deadlineMs": 20_000})
    await hub.line(1)
    assert (await hub.answer(stop["requestId"])).status == 200
    refused = await hub.answer(start["requestId"])
    assert (refused.status, refused.socket) == (412, old.n)
    assert processes_with(agent.runs[1]) == []
