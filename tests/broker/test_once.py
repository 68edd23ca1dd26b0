"""One dispatch id takes effect once, and every repeat of it gets the same answer."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.broker.agents import DEAF, SHOW, Agent, processes_with, shown
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub

pytestmark = pytest.mark.anyio


async def test_a_repeat_of_an_answered_id_gets_the_same_answer_and_runs_nothing(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    first = await agent.create(dispatch=dispatch)
    await agent.post("stop")
    again = await agent.create(dispatch=dispatch, body={"runId": "another"})
    assert (again.status, again.body) == (201, first.body)
    assert processes_with(agent.id) == []


async def test_an_answer_outlives_the_broker(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    first = await agent.create(dispatch=dispatch)
    await broker.again()
    again = await agent.create(dispatch=dispatch)
    assert (again.status, again.body) == (201, first.body)
    assert len(processes_with(agent.runs[0])) == 1
    assert processes_with(agent.runs[1]) == []


async def test_a_repeat_of_a_running_id_joins_it(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create(DEAF, config={"stopGrace": "600ms"})
    await agent.logged("deaf")
    frames = [agent.asking("stop", {}, dispatch=dispatch) for _ in range(3)]
    for frame in frames:
        await hub.send(frame)
    answers = [await hub.answer(frame["requestId"]) for frame in frames]
    assert {answer.body for answer in answers} == {answers[0].body}
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert set(hub.accepted) >= {frame["requestId"] for frame in frames}


async def test_a_refusal_is_an_answer_and_is_kept(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    refused = await agent.message("too early", dispatch=dispatch)
    assert refused.status == 404
    await agent.create()
    again = await agent.message("too early", dispatch=dispatch)
    assert (again.status, again.body) == (404, refused.body)


async def test_what_is_no_outcome_is_forgotten(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    assert (await agent.create(dispatch=dispatch, timeout=0)).status == 408
    assert (await agent.create(dispatch=dispatch, epoch=0)).status == 412
    assert processes_with(agent.id) == []
    assert (await agent.create(dispatch=dispatch)).status == 201


async def test_a_request_that_is_not_signed_leaves_the_id_alone(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    assert (await agent.create(dispatch=dispatch, headers={"X-Scion-Signature": "no"})).status == 401
    assert (await agent.create(dispatch=dispatch)).status == 201


async def test_an_answer_whose_socket_is_gone_waits_for_the_repeat(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create(DEAF, config={"stopGrace": "500ms"})
    await agent.logged("deaf")
    frame = agent.asking("stop", {}, dispatch=dispatch)
    await hub.send(frame)
    await hub.begun(frame)
    hub.newest.ws.transport.abort()
    await hub.line(1)
    again = await agent.post("stop", dispatch=dispatch)
    assert (again.status, again.json["phase"]) == (200, "stopped")
    assert frame["requestId"] not in hub.answers


async def test_ids_and_answers_of_any_alphabet_are_kept(hub: FakeHub, broker: BrokerProcess, tmp_path: Path) -> None:
    agent = Agent(hub, slug="größe-✓")
    path = "/api/v1/agents/gr%C3%B6%C3%9Fe-%E2%9C%93"
    body = agent.creation({"command": ["sh", "-c", "echo Привет; cat"]}, name="名前")
    first = await hub.ask("POST", "/api/v1/agents", body, agent=agent.id, dispatch="ключ/1")
    assert first.json["agent"]["name"] == "名前"
    assert (await hub.ask("GET", path)).json["id"] == agent.id
    assert (await hub.ask("POST", "/api/v1/agents", body, agent=agent.id, dispatch="ключ/1")).body == first.body


async def test_a_second_broker_in_the_same_folder_is_refused(hub: FakeHub, broker: BrokerProcess) -> None:
    second = BrokerProcess.__new__(BrokerProcess)
    second.__dict__.update(broker.__dict__, child=None)
    second.run()
    assert await second.process.ended() != 0
    assert "another broker runs in" in second.process.tail()
    assert broker.process.alive
    assert len(hub.lines) == 1


async def test_create_asks_for_the_values_that_nobody_has(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    config = {"requiredEnv": ["KEY", "REGION", "PATH"], "env": {"REGION": "eu"}}
    more: dict[str, Any] = {"gatherEnv": True, "resolvedEnv": {"HUB": "x"}}
    asked = await agent.create(SHOW, config=config, body=more)
    assert asked.status == 202
    assert asked.json == {
        "agentId": agent.id,
        "required": ["KEY", "REGION", "PATH"],
        "hubHas": [],
        "brokerHas": ["REGION", "PATH"],
        "needs": ["KEY"],
        "secretInfo": {},
    }
    await broker.again()
    assert (await hub.beat(1))["agentStates"][0]["phase"] == "provisioning"
    assert (await agent.post("finalize-env", {"env": {"OTHER": "x"}})).status == 422
    run = agent.new_run()
    done = await agent.post("finalize-env", {"env": {"KEY": "ß"}, "runId": run})
    assert (done.status, done.json["phase"], done.json["agent"]["runId"]) == (201, "running", run)
    env = await shown(agent)
    assert (env["KEY"], env["HUB"], env["POINTSMAN_TOKEN"]) == ("ß", "x", "token")
    again = await agent.post("finalize-env", {"env": {"KEY": "x"}})
    assert (again.status, again.code) == (409, "invalid_state")
