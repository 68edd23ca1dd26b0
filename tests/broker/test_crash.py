"""`kill -9` of the broker at each step of each operation: after its return it happened once, and is told truly."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.broker.agents import DEAF, REPORTS, Agent, processes_with, python
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub
from tests.harness.processes import eventually

pytestmark = pytest.mark.anyio

MARK = """
import os, sys
with open(os.environ["MARK"], "a") as file:
    file.write(os.environ["POINTSMAN_RUN_ID"] + "\\n")
for line in sys.stdin:
    with open(os.environ["MARK"], "a") as file:
        file.write(line)
"""
"""Leaves a mark for each start and each message."""

INBOX = "broker.inbox:Inbox"
RUNTIME = "broker.runtimes.process:ProcessRuntime"
BEGINS = [(f"{INBOX}.begin", "before"), (f"{INBOX}.begin", "after")]
ENDS = [(f"{INBOX}.finish", "before"), (f"{INBOX}.finish", "after")]
SPAWNS = [
    (f"{RUNTIME}.start", "before"),
    ("broker.runtimes.process:locked", "after"),
    ("os:posix_spawn", "after"),
    ("select:select", "before"),
    ("select:select", "after"),
    (f"{RUNTIME}.start", "after"),
]
"""`select` waits for the keeper's word: before it the orders are written, after it the agent runs."""
STOPS = [("broker.runtimes.kept:Kept.ask", "before"), ("broker.runtimes.kept:Kept.ask", "after")]


class Marks:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "marks"

    @property
    def lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []

    async def appear(self, n: int) -> list[str]:
        async def there() -> bool:
            return len(self.lines) >= n

        await eventually(there, f"{n} marks")
        return self.lines


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path)


async def dies(broker: BrokerProcess, frame: dict[str, Any]) -> None:
    await broker.hub.send(frame)
    await broker.process.ended()


def points(*groups: list[tuple[str, str]]) -> pytest.MarkDecorator:
    every = [point for group in groups for point in group]
    return pytest.mark.parametrize(
        ("place", "moment"), every, ids=[f"{moment} {place.rpartition(':')[2]}" for place, moment in every]
    )


@points(BEGINS, SPAWNS, ENDS)
async def test_a_create_happens_once(
    hub: FakeHub, idle_broker: BrokerProcess, marks: Marks, place: str, moment: str
) -> None:
    broker, agent, dispatch = idle_broker, Agent(hub), str(uuid.uuid4())
    await broker.begin(die=(place, moment, 1))
    body = agent.creation({"command": python(MARK), "env": {"MARK": str(marks.file)}})
    await dies(broker, hub.frame("POST", "/api/v1/agents", body, agent=agent.id, dispatch=dispatch))
    await broker.again()
    answer = await hub.ask("POST", "/api/v1/agents", body, agent=agent.id, dispatch=dispatch)
    assert (answer.status, answer.json["phase"]) == (201, "running")
    assert await marks.appear(1) == agent.runs
    assert len(processes_with(f"POINTSMAN_RUN_ID={agent.runs[0]}")) == 1
    assert (await agent.message("still there")).status == 200
    assert len(await marks.appear(2)) == 2


@points(SPAWNS[1:5], ENDS[:1])
async def test_a_restart_happens_once(
    hub: FakeHub, idle_broker: BrokerProcess, marks: Marks, place: str, moment: str
) -> None:
    broker, agent, dispatch = idle_broker, Agent(hub), str(uuid.uuid4())
    await broker.begin(die=(place, moment, 2))
    config = {"command": python(MARK), "env": {"MARK": str(marks.file)}}
    await hub.ask("POST", "/api/v1/agents", agent.creation(config), agent=agent.id)
    await marks.appear(1)
    body = agent.body(config)
    await dies(broker, agent.asking("restart", body, dispatch=dispatch))
    await broker.again()
    answer = await agent.post("restart", body, dispatch=dispatch)
    assert (answer.status, answer.json["phase"], answer.json["agent"]["runId"]) == (200, "running", agent.runs[1])
    assert await marks.appear(2) == agent.runs
    assert processes_with(f"POINTSMAN_RUN_ID={agent.runs[0]}") == []
    assert len(processes_with(f"POINTSMAN_RUN_ID={agent.runs[1]}")) == 1


@points(BEGINS[1:], STOPS, ENDS[:1])
async def test_a_stop_is_finished(hub: FakeHub, idle_broker: BrokerProcess, place: str, moment: str) -> None:
    op, phase = ("suspend", "suspended") if moment == "after" else ("stop", "stopped")
    broker, agent, dispatch = idle_broker, Agent(hub), str(uuid.uuid4())
    await broker.begin(die=(place, moment, 1 if "ask" in place else 2))
    await agent.create()
    await dies(broker, hub.frame("POST", f"/api/v1/agents/one/{op}", {}, agent=agent.id, dispatch=dispatch))
    await broker.again()
    answer = await agent.post(op, dispatch=dispatch)
    assert (answer.status, answer.json["phase"]) == (200, phase)
    assert processes_with(agent.runs[0]) == []


async def test_a_stop_goes_on_without_the_broker(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create(DEAF, config={"stopGrace": "800ms"})
    await agent.logged("deaf")
    frame = agent.asking("stop", dispatch=dispatch)
    await hub.send(frame)

    async def asked() -> bool:
        return bool(broker.state(agent.id)["asked"])

    await eventually(asked, "the keeper to be asked")
    await broker.again()
    answer = await agent.post("stop", dispatch=dispatch)
    assert (answer.status, answer.json["agent"]["detail"]) == (200, {"exitCode": 137})


@points(BEGINS[1:], [(f"{RUNTIME}.remove", "before"), (f"{RUNTIME}.remove", "after")], ENDS)
async def test_a_delete_is_finished(hub: FakeHub, idle_broker: BrokerProcess, place: str, moment: str) -> None:
    broker, agent, dispatch = idle_broker, Agent(hub), str(uuid.uuid4())
    await broker.begin(die=(place, moment, 1 if "remove" in place else 2))
    await agent.create()
    query = {"deleteFiles": "true"}
    path = f"/api/v1/agents/{agent.slug}"
    await dies(broker, hub.frame("DELETE", path, agent=agent.id, dispatch=dispatch, query=query))
    await broker.again()
    assert (await agent.delete(dispatch=dispatch, query=query)).status == 204
    assert processes_with(agent.runs[0]) == []
    assert list((broker.dir / "agents").iterdir()) == []


@points(BEGINS[1:], STOPS, ENDS)
async def test_a_message_is_read_once(
    hub: FakeHub, idle_broker: BrokerProcess, marks: Marks, place: str, moment: str
) -> None:
    broker, agent, dispatch = idle_broker, Agent(hub), str(uuid.uuid4())
    await broker.begin(die=(place, moment, 1 if "ask" in place else 2))
    await agent.create(python(MARK), config={"env": {"MARK": str(marks.file)}})
    body = {"message": "only once"}
    await dies(broker, agent.asking("message", body, dispatch=dispatch))
    await broker.again()
    assert (await agent.message("only once", dispatch=dispatch)).status == 200
    assert (await agent.message("another")).status == 200
    _, *read = await marks.appear(3)
    assert [("only once" in line, dispatch in line) for line in read] == [(True, True), (False, False)]


async def test_a_message_read_before_the_agent_ended_is_not_read_by_its_next_run(
    hub: FakeHub, idle_broker: BrokerProcess, marks: Marks
) -> None:
    broker, agent, dispatch = idle_broker, Agent(hub), str(uuid.uuid4())
    await broker.begin(die=(f"{INBOX}.finish", "before", 2))
    await agent.create(python(MARK), config={"env": {"MARK": str(marks.file)}})
    body = {"message": "the last"}
    await dies(broker, agent.asking("message", body, dispatch=dispatch))
    await marks.appear(2)
    [pid] = processes_with(f"POINTSMAN_RUN_ID={agent.runs[0]}")
    os.kill(pid, signal.SIGKILL)
    await broker.again()
    await agent.status(phase="error")
    assert (await agent.message("the last", dispatch=dispatch)).status == 200
    await agent.start(python(MARK), config={"env": {"MARK": str(marks.file)}})
    assert (await agent.message("the last", dispatch=dispatch)).status == 200
    assert sum("the last" in line for line in await marks.appear(3)) == 1


@points([(f"{RUNTIME}.exec", "before"), (f"{RUNTIME}.exec", "after")], ENDS[:1])
async def test_a_command_is_not_run_again(hub: FakeHub, idle_broker: BrokerProcess, place: str, moment: str) -> None:
    broker, agent, dispatch = idle_broker, Agent(hub), str(uuid.uuid4())
    await broker.begin(die=(place, moment, 1 if "exec" in place else 2))
    await agent.create()
    body = {"command": ["sh", "-c", "echo x >> times"]}
    await dies(broker, agent.asking("exec", body, dispatch=dispatch))
    await broker.again()
    answer = await agent.post("exec", body, dispatch=dispatch)
    assert (answer.status, answer.code) == (409, "outcome_unknown")
    read = await agent.post("exec", {"command": ["sh", "-c", "cat times || true"]})
    assert read.json["output"].count("x\n") <= 1


async def test_running_agents_are_found_again_and_those_that_ended_are_told(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    steady, failing, done = (Agent(hub, slug) for slug in ("steady", "failing", "done"))
    await steady.create()
    wait = "import sys, time\nsys.stdin.readline()\ntime.sleep(0.3)\nprint('farewell')\nsys.exit({})"
    await failing.create(wait.format(7))
    await done.create(wait.format(0))
    assert (await failing.message("go")).status == 200
    assert (await done.message("go")).status == 200
    broker.kill()

    async def ended() -> bool:
        return all(broker.state(one.id)["ended"] for one in (failing, done))

    await eventually(ended, "the keepers to write down the ends")
    await broker.again()
    assert (await failing.status(phase="error"))["detail"] == {"exitCode": 7, "message": "farewell"}
    assert (await done.status(phase="stopped"))["detail"] == {"exitCode": 0}
    assert (await steady.message("still there")).status == 200
    await steady.logged("still there")


async def test_an_agent_whose_keeper_was_killed_is_not_left_running(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    os.kill(broker.state(agent.id)["keeper"]["pid"], signal.SIGKILL)
    told = await agent.status(phase="error")
    assert "keeper died" in told["detail"]["message"]
    assert processes_with(f"POINTSMAN_RUN_ID={agent.runs[0]}") == []
    assert (await agent.start()).json["phase"] == "running"


async def test_an_agent_whose_record_was_lost_is_stopped(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    broker.kill()
    for file in broker.dir.glob("inbox.db*"):
        file.unlink()
    await broker.begin()
    assert processes_with(f"POINTSMAN_RUN_ID={agent.runs[0]}") == []
    assert (await agent.create()).status == 201


async def test_a_status_that_nobody_heard_is_told_after_the_return(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(f"import os, time\nwhile not os.path.exists('go'): time.sleep(.02)\n{REPORTS}")
    assert (await agent.post("exec", {"command": ["sh", "-c", "sleep 0.3; touch go"]})).status == 200
    await broker.again()
    await agent.status(activity="thinking")
