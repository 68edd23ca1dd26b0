"""Messages: read in their order, once, as lines of JSON; or by a command of the agent's own."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.broker.agents import ECHO, Agent
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub
from tests.broker.sharing import broker, hub, shared

__all__ = ["broker", "hub", "shared"]
pytestmark = pytest.mark.anyio

SLEEPER = "import time\nprint('asleep', flush=True)\ntime.sleep(1000)"
LARGE = "x" * 60_000
"""One fits into a pipe, two do not."""


def read(log: str) -> list[dict[str, Any]]:
    """The messages that ECHO says it read."""
    return [json.loads(line.removeprefix("read ")) for line in log.splitlines() if line.startswith("read ")]


async def test_messages_are_lines_of_json_with_their_id_in_order(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    dispatch = str(uuid.uuid4())
    answer = await agent.message("première ✓\nsecond line", dispatch=dispatch)
    assert (answer.status, answer.json) == (200, {"delivered": True, "messageId": dispatch})
    frames = [agent.asking("message", {"message": str(n)}) for n in range(20)]
    await hub.send(*frames)
    first, *others = read(await agent.logged("read", 21))
    assert first == {"id": dispatch, "message": "première ✓\nsecond line"}
    assert [one["message"] for one in others] == [str(n) for n in range(20)]


async def test_structured_messages_keep_their_structure(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    structured = {"msg": "do it", "type": "instruction", "sender": "user:ada"}
    answer = await agent.post("message", {"structured_message": structured, "interrupt": True})
    assert answer.status == 200
    [line] = read(await agent.logged("read"))
    assert (line["message"], line["structured_message"], line["interrupt"]) == ("do it", structured, True)


async def test_an_empty_message_is_refused(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    empty: list[dict[str, Any]] = [{}, {"message": ""}, {"message": 5}, {"structured_message": {"msg": ""}}]
    for body in empty:
        assert (await agent.post("message", body)).status == 400, body


async def test_an_agent_that_does_not_read_is_busy_and_a_repeat_is_read_once(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create(f"import os, time\nwhile not os.path.exists('go'): time.sleep(.02)\n{ECHO}")
    assert (await agent.message(LARGE)).status == 200
    frame = agent.asking("message", {"message": "+" + LARGE}, dispatch=dispatch)
    await hub.send(frame)
    taken = await hub.answer(frame["requestId"])
    assert taken.status == 200, "its first bytes are in the pipe: it cannot be taken back"
    busy = await agent.message("third")
    assert (busy.status, busy.code, busy.headers["Retry-After"]) == (503, "agent_busy", "2")
    assert (await agent.post("exec", {"command": ["touch", "go"]})).status == 200
    assert (await agent.message("third")).status == 200
    messages = [one["message"] for one in read(await agent.logged('"third"'))]
    assert messages == [LARGE, "+" + LARGE, "third"]


async def test_a_message_that_is_not_read_yet_can_be_cancelled(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create(SLEEPER)
    await agent.logged("asleep")
    assert (await agent.message(LARGE)).status == 200
    fill = agent.asking("message", {"message": LARGE})
    late = agent.asking("message", {"message": "x"}, dispatch=dispatch)
    await hub.send(fill, late, {"type": "cancel", "requestId": late["requestId"], "dispatchId": dispatch})
    assert (await hub.answer(late["requestId"])).status == 499


async def test_an_agent_that_closed_its_input_takes_no_messages(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create("import os, time\nos.close(0)\nprint('closed', flush=True)\ntime.sleep(1000)")
    await agent.logged("closed")
    answer = await agent.message("hello")
    assert (answer.status, answer.code) == (409, "input_closed")


async def test_a_message_command_delivers_each_message(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    script = 'read line; echo "$line" >> got; case "$line" in *refuse*) echo sorry; exit 9;; esac'
    await agent.create(SLEEPER, config={"messageCommand": ["sh", "-c", script]})
    dispatch = str(uuid.uuid4())
    assert (await agent.message("grüße", dispatch=dispatch)).status == 200
    assert (await agent.message("grüße", dispatch=dispatch)).status == 200
    refused = await agent.message("refuse")
    assert (refused.status, refused.code) == (422, "message_command_failed")
    assert refused.json["error"]["details"] == {"exitCode": 9, "output": "sorry\n"}
    got = (await agent.post("exec", {"command": ["cat", "got"]})).json["output"].splitlines()
    assert [json.loads(line)["message"] for line in got] == ["grüße", "refuse"]


async def test_messages_and_commands_of_one_agent_do_not_get_into_each_others_way(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    agent = Agent(hub)
    await agent.create()
    messages = [agent.asking("message", {"message": f"{n}" * 2_000}) for n in range(10)]
    commands = [agent.asking("exec", {"command": ["sh", "-c", f"echo {n}; cat"]}) for n in range(10)]
    await hub.send(*(one for pair in zip(messages, commands, strict=True) for one in pair))
    for n, (message, command) in enumerate(zip(messages, commands, strict=True)):
        assert (await hub.answer(message["requestId"])).status == 200
        assert (await hub.answer(command["requestId"])).json == {"output": f"{n}\n", "exitCode": 0}
    read_ones = read(await agent.logged("read", 10))
    assert [one["message"][0] for one in read_ones] == [str(n) for n in range(10)]
