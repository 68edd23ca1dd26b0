"""Create, start, stop, restart, suspend, delete: a real process is there, or it is not."""

from __future__ import annotations

import pytest

from tests.broker.agents import DEAF, Agent, processes_with
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub
from tests.broker.sharing import broker, hub, shared
from tests.harness.processes import eventually

__all__ = ["broker", "hub", "shared"]
pytestmark = pytest.mark.anyio


async def gone(run: str) -> None:
    async def none_left() -> bool:
        return not processes_with(run)

    await eventually(none_left, f"no process of run {run}")


async def test_create_starts_a_real_process_and_says_so(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    answer = await agent.create()
    assert answer.status == 201
    assert answer.json["created"] is True
    told = answer.json["agent"]
    assert (told["id"], told["slug"], told["name"]) == (agent.id, agent.slug, agent.slug.title())
    assert (told["phase"], told["runId"], told["runtime"]) == ("running", agent.runs[0], "process")
    assert len(processes_with(agent.runs[0])) == 1
    assert f"begun {agent.runs[0]}" in await agent.logged("begun")


async def test_stop_ends_the_process_and_start_makes_a_new_run(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    stopped = await agent.post("stop")
    assert (stopped.status, stopped.json["phase"]) == (200, "stopped")
    assert stopped.json["agent"]["detail"] == {"exitCode": 143}
    await gone(agent.runs[0])
    started = await agent.start()
    assert (started.status, started.json["phase"]) == (200, "running")
    assert started.json["agent"]["runId"] == agent.runs[1]
    assert len(processes_with(agent.runs[1])) == 1


async def test_restart_replaces_the_process(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    answer = await agent.start(op="restart")
    assert (answer.status, answer.json["phase"], answer.json["agent"]["runId"]) == (200, "running", agent.runs[1])
    assert answer.json["agent"]["detail"] == {}
    await gone(agent.runs[0])
    assert len(processes_with(agent.runs[1])) == 1


async def test_suspend_is_told_as_such(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    answer = await agent.post("suspend")
    assert (answer.status, answer.json["phase"]) == (200, "suspended")
    await gone(agent.runs[0])
    status = await agent.status(phase="suspended")
    assert status["runId"] == agent.runs[0]


async def test_delete_removes_the_agent_and_frees_its_slug(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    answer = await agent.delete(query={"deleteFiles": "true"})
    assert (answer.status, answer.body) == (204, b"")
    await gone(agent.runs[0])
    assert not (broker.dir / "agents" / agent.id).exists()
    assert (await agent.delete()).status == 404
    assert (await Agent(hub, agent.slug).create()).status == 201


async def test_a_running_agent_that_is_started_goes_on_under_the_run_that_it_has(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent = Agent(hub)
    await agent.create("import sys; sys.stdin.readline(); sys.exit(4)")
    answer = await agent.start()
    assert (answer.status, answer.json["phase"], answer.json["agent"]["runId"]) == (200, "running", agent.runs[0])
    assert len(processes_with(agent.runs[0])) == 1
    assert processes_with(agent.runs[1]) == []
    await agent.message("end")
    assert (await agent.status(phase="error"))["runId"] == agent.runs[0]


async def test_start_of_a_running_agent_with_a_task_makes_it_anew(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    answer = await agent.start("import os; print(os.environ['POINTSMAN_TASK']); input()", body={"task": "Größe"})
    assert answer.status == 200
    await agent.logged("Größe")
    await gone(agent.runs[0])


async def test_an_agent_that_ignores_term_is_killed_when_its_grace_is_over(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(DEAF, config={"stopGrace": "300ms"})
    await agent.logged("deaf")
    answer = await agent.post("stop")
    assert (answer.status, answer.json["phase"]) == (200, "stopped")
    assert answer.json["agent"]["detail"] == {"exitCode": 137}
    await gone(agent.runs[0])


async def test_stop_takes_the_children_of_the_agent_along(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(["sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"])
    await agent.logged("up")
    assert len(processes_with(agent.runs[0])) == 3
    assert (await agent.post("stop")).status == 200
    assert processes_with(agent.runs[0]) == []


async def test_an_agent_that_exits_at_once_with_an_error_is_told_with_its_last_lines(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent = Agent(hub)
    answer = await agent.create("import sys; print('außer Betrieb'); sys.exit(3)")
    assert answer.status == 201
    assert answer.json["phase"] in ("running", "error")
    status = await agent.status(phase="error")
    assert status["runId"] == agent.runs[0]
    assert status["detail"] == {"exitCode": 3, "message": "außer Betrieb"}
    told = [frame for _, frame in hub.frames]
    first = next(one for one in told if one["type"] == "event" and one["payload"].get("runId") == agent.runs[0])
    made = next(one for one in told if hub.answers.get(one.get("requestId", "")) is answer)
    assert told.index(made) < told.index(first), "the answer that made the run comes before what it reports"


async def test_an_agent_that_ends_well_by_itself_is_stopped(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create("print('done')")
    assert (await agent.status(phase="stopped"))["detail"] == {"exitCode": 0}
    late = await agent.message("too late")
    assert (late.status, late.code) == (409, "invalid_state")


async def test_stop_of_an_agent_that_is_not_there_has_nothing_to_do(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    stopped = await agent.post("stop")
    assert (stopped.status, stopped.json["phase"]) == (200, "stopped")
    missing = await agent.post("suspend")
    assert (missing.status, missing.code) == (404, "not_found")


async def test_a_start_makes_an_agent_that_this_broker_lost(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    assert (await agent.start()).json["phase"] == "running"
    await agent.logged("begun")


async def test_provision_only_starts_nothing(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    answer = await agent.create(body={"provisionOnly": True})
    assert (answer.status, answer.json["phase"]) == (201, "created")
    assert processes_with(agent.id) == []
    assert (await agent.start()).json["phase"] == "running"


async def test_a_slug_belongs_to_one_agent_of_a_project(hub: FakeHub, broker: BrokerProcess) -> None:
    assert (await Agent(hub, "taken").create()).status == 201
    second = await Agent(hub, "taken").create()
    assert (second.status, second.code) == (409, "already_exists")
    elsewhere = Agent(hub, "taken", project="0198c0de-0000-7000-8000-0000000000bb")
    assert (await elsewhere.create(query={"projectId": elsewhere.project})).status == 201


async def test_agents_are_listed_shown_and_asked_for_their_prompt(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(body={"task": "count"})
    listed = (await hub.ask("GET", "/api/v1/agents")).json
    assert listed["totalCount"] == len(listed["agents"])
    assert agent.slug in [one["slug"] for one in listed["agents"]]
    assert (await hub.ask("GET", f"/api/v1/agents/{agent.slug}")).json["id"] == agent.id
    assert (await hub.ask("GET", f"/api/v1/agents/{agent.slug}/has-prompt")).json == {"hasPrompt": True}
    info = (await hub.ask("GET", "/api/v1/info")).json
    assert info["runtimes"] == ["process"]
    assert "dedupe" in info["capabilities"]
