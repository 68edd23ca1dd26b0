"""What an agent is started with, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.broker.agents import SHOW, Agent, shown
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub
from tests.broker.sharing import broker, hub, shared

__all__ = ["broker", "hub", "shared"]
pytestmark = pytest.mark.anyio

ENVIRONMENT = {"SESSION_SECRET": "hidden", "PASSED": "on"}
SETTINGS = {"pass_env": ["PASSED"]}

USR1 = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(21))
print('up', flush=True)
signal.pause()
"""


async def test_an_agent_gets_its_own_environment_and_nothing_of_the_brokers(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent = Agent(hub)
    more: dict[str, Any] = {
        "resolvedEnv": {"A": "resolved", "B": "resolved", "POINTSMAN_HUB": "http://resolved"},
        "resolvedSecrets": [
            {"name": "B", "type": "environment", "value": "secret"},
            {"name": "key", "target": "C", "type": "environment", "value": "ключ", "source": "user"},
        ],
        "task": "count to three",
    }
    await agent.create(SHOW, config={"env": {"A": "configured", "D": "configured"}}, body=more)
    env = await shown(agent)
    assert {name: env[name] for name in ("A", "B", "C", "D", "PASSED", "POINTSMAN_TASK")} == {
        "A": "resolved", "B": "secret", "C": "ключ", "D": "configured", "PASSED": "on",
        "POINTSMAN_TASK": "count to three",
    }  # fmt: skip
    assert env["POINTSMAN_AGENT_ID"] == agent.id
    assert env["POINTSMAN_RUN_ID"] == agent.runs[0]
    assert env["POINTSMAN_TOKEN"] == "token"
    assert env["POINTSMAN_HUB"] == "http://resolved"
    assert "SESSION_SECRET" not in env
    assert "PATH" in env


async def test_hub_and_token_come_from_the_environment_where_the_body_names_none(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent = Agent(hub)
    resolved = {"SCION_HUB_ENDPOINT": "http://scion", "SCION_AUTH_TOKEN": "jwt"}
    await agent.create(SHOW, body={"hubEndpoint": None, "agentToken": None, "resolvedEnv": resolved})
    env = await shown(agent)
    assert (env["POINTSMAN_HUB"], env["POINTSMAN_TOKEN"]) == ("http://scion", "jwt")


async def test_a_resumed_agent_is_told(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    await agent.post("suspend")
    await agent.start(SHOW, body={"resume": True})
    assert (await shown(agent))["POINTSMAN_RESUME"] == "true"


async def test_workdir_is_the_agents_own_or_the_one_that_it_names(
    hub: FakeHub, broker: BrokerProcess, tmp_path: Path
) -> None:
    own, named = Agent(hub, "own"), Agent(hub, "named")
    await own.create(SHOW)
    assert f"CWD {broker.dir / 'agents' / own.id / 'work'}" in await own.logged("CWD")
    await named.create(SHOW, config={"workdir": str(tmp_path)})
    assert f"CWD {tmp_path}\n" in await named.logged("CWD")


async def test_every_fault_of_a_configuration_is_told_at_once(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    faults = {
        "command": "cat",
        "env": {"A": 5},
        "workdir": 7,
        "stopSignal": "LOUD",
        "stopGrace": "soon",
        "messageCommand": [],
        "requiredEnv": "A",
    }
    answer = await agent.create(config=faults)
    assert (answer.status, answer.code) == (422, "invalid_config")
    assert set(answer.json["error"]["details"]["fields"]) == {f"config.{name}" for name in faults}
    assert (await agent.create()).status == 201, "a refused create leaves nothing"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"command": None}, "config.command"),
    ({"command": []}, "config.command"),
    ({"command": ["a\0b"]}, "config.command"),
    ({"stopGrace": "20m"}, "config.stopGrace"),
    ({"workdir": "relative"}, "config.workdir"),
    ({"workdir": "/nowhere/at/all"}, "config.workdir"),
    ({"env": {"A=B": "x"}}, "config.env"),
]


async def test_a_wrong_field_is_named(hub: FakeHub, broker: BrokerProcess) -> None:
    for config, field in WRONG:
        answer = await Agent(hub).create(config=config)
        assert (answer.status, set(answer.json["error"]["details"]["fields"])) == (422, {field})


async def test_a_command_that_cannot_be_started_is_refused_and_leaves_nothing(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent = Agent(hub)
    for command in ("/nowhere/agent", "/etc/hostname", "no-such-program-anywhere"):
        answer = await agent.create([command])
        assert (answer.status, answer.code) == (422, "start_failed")
        assert command in answer.json["error"]["message"]
        assert not (broker.dir / "agents" / agent.id).exists()
    assert (await hub.ask("GET", f"/api/v1/agents/{agent.slug}")).status == 404
    assert (await agent.create()).status == 201


async def test_a_restart_that_cannot_start_leaves_the_agent_stopped_and_says_so(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent = Agent(hub)
    await agent.create()
    answer = await agent.start(["no-such-program-anywhere"], op="restart")
    assert answer.status == 422
    told = await agent.status(phase="stopped")
    assert told["runId"] == agent.runs[0]


UNFIT: list[dict[str, Any]] = [
    {"resolvedSecrets": [{"name": "f", "type": "file", "value": "x", "target": "/f"}]},
    {"resolvedSecrets": [{"type": "environment", "value": "x"}]},
    {"resolvedEnv": {"A": 1}},
    {"resolvedEnv": [1]},
    {"task": 7},
    {"task": "x" * 200_000},
    {"inlineConfig": [1]},
]


async def test_what_cannot_be_given_to_a_process_is_refused(hub: FakeHub, broker: BrokerProcess) -> None:
    for more in UNFIT:
        assert (await Agent(hub).create(body=more)).status == 422, list(more)


async def test_finalize_env_may_name_the_agent_by_its_id(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(config={"requiredEnv": ["KEY"]}, body={"gatherEnv": True})
    answer = await hub.ask("POST", f"/api/v1/agents/{agent.id}/finalize-env", {"env": {"KEY": "x"}})
    assert answer.status == 201


async def test_values_that_are_missing_are_named_where_nobody_gathers_them(hub: FakeHub, broker: BrokerProcess) -> None:
    answer = await Agent(hub).create(config={"requiredEnv": ["KEY"]})
    assert (answer.status, answer.code) == (422, "missing_environment")
    assert set(answer.json["error"]["details"]["fields"]) == {"env.KEY"}


async def test_exec_runs_beside_the_agent_with_its_environment(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(config={"env": {"COLOUR": "grün"}})
    done = await agent.post("exec", {"command": ["sh", "-c", "echo $COLOUR; echo err >&2; exit 5"]})
    assert (done.status, done.json) == (200, {"output": "grün\nerr\n", "exitCode": 5})
    slow = await agent.post("exec", {"command": ["sleep", "60"], "timeout": 0.3})
    assert (slow.json["exitCode"], slow.json["timedOut"]) == (137, True)
    assert (await agent.post("exec", {"command": "ls"})).status == 422
    missing = await agent.post("exec", {"command": ["no-such-program-anywhere"]})
    assert missing.json["exitCode"] == 127


async def test_an_exec_can_be_cancelled(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    frame = agent.asking("exec", {"command": ["sleep", "60"]}, dispatch="slow")
    await hub.send(frame)
    await hub.begun(frame)
    await hub.send({"type": "cancel", "requestId": frame["requestId"], "dispatchId": "slow"})
    assert (await hub.answer(frame["requestId"])).status == 499


async def test_a_stop_signal_of_its_own_lets_an_agent_end_as_it_likes(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(USR1, config={"stopSignal": "USR1"})
    await agent.logged("up")
    assert (await agent.post("stop")).json["agent"]["detail"] == {"exitCode": 21}
