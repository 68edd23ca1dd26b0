"""What the broker says unasked: what agents report, how long operations take, how everything stands."""

from __future__ import annotations

import pytest

from tests.broker.agents import DEAF, REPORTS, Agent
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub
from tests.broker.sharing import broker, hub, shared
from tests.harness.processes import eventually

__all__ = ["broker", "hub", "shared"]
pytestmark = pytest.mark.anyio

SETTINGS = {"heartbeat": 0.3}

GREEDY = """
import json
for n in range(60):
    print('::status', json.dumps({"activity": "dancing", "detail": {f"k{n}": "x" * 10_000}}))
print('::status', json.dumps({"activity": "blocked", "detail": {"x": "y" * 60_000}}), flush=True)
input()
"""
FLOOD = """
for n in range(20000):
    print('::status {"activity": "executing", "detail": {"n": %d}}' % n)
print('end', flush=True)
input()
"""


async def test_status_lines_become_events_of_the_run(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(REPORTS)
    told = await agent.status(activity="thinking")
    assert told["detail"] == {"toolName": "größe", "message": "one"}
    assert (told["runId"], told["phase"], told["slug"], told["projectId"]) == (
        agent.runs[0], "running", agent.slug, agent.project,
    )  # fmt: skip
    await agent.message("go on")
    told = await agent.status(activity="waiting_for_input")
    assert told["detail"] == {"toolName": "größe", "message": "two"}
    assert "::status not json" in await agent.log()


async def test_an_operation_that_takes_long_says_so(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(DEAF, config={"stopGrace": "900ms"})
    await agent.logged("deaf")
    await agent.post("stop", dispatch="slow-stop")
    progress = hub.events("agent_status", dispatchId="slow-stop")
    assert len(progress) >= 2
    assert {one["phase"] for one in progress} == {"stopping"}
    assert {one["runId"] for one in progress} == {agent.runs[0]}


async def test_heartbeats_repeat_phase_and_run_of_every_agent(hub: FakeHub, broker: BrokerProcess) -> None:
    one, two = Agent(hub, "one"), Agent(hub, "two")
    await one.create()
    await two.create()
    await two.post("stop")
    seen = len(hub.events("heartbeat"))

    async def later() -> bool:
        return len(hub.events("heartbeat")) > seen + 1

    await eventually(later, "two more heartbeats")
    last = hub.events("heartbeat")[-1]
    assert last["activeAgents"] == sum(state["phase"] == "running" for state in last["agentStates"])
    assert {(state["agentId"], state["runId"], state["phase"]) for state in last["agentStates"]} >= {
        (one.id, one.runs[0], "running"), (two.id, two.runs[0], "stopped"),
    }  # fmt: skip


async def test_an_agent_that_talks_without_end_floods_nobody(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(FLOOD)
    await agent.logged("\nend")

    async def last() -> bool:
        return any(one.get("detail", {}).get("n") == 19999 for one in hub.events("agent_status"))

    await eventually(last, "the last status")
    assert len(hub.events("agent_status", agentId=agent.id)) < 200


async def test_an_agent_cannot_say_more_than_fits(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(GREEDY)
    told = await agent.status(activity="blocked")
    assert len(told["detail"]) < 100
    assert hub.newest.open
    unknown = [one for one in hub.events("agent_status", agentId=agent.id) if one.get("activity") == "dancing"]
    assert unknown == []
