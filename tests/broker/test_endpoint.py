"""The broker's own HTTP address: the same inbox, fence and turns as on a socket, and proof for every word."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Any

import anyio
import httpx2
import pytest

from kernel import wire
from tests.broker.agents import DEAF, Agent, processes_with
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import BROKER_ID, SECRET, Answer, FakeHub, Frame
from tests.harness.directbroker import a_free_port
from tests.harness.processes import eventually

pytestmark = pytest.mark.anyio
COVERED = (wire.DISPATCH_ID, wire.DISPATCH_ATTEMPT, wire.DISPATCH_EPOCH, wire.DISPATCH_TIMEOUT, wire.AGENT_ID)
INFO = "/api/v1/info"


class Door:
    """Calls the endpoint as a hub does, with the same frames that a socket would carry."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    async def ask(self, frame: Frame, *, cover: tuple[str, ...] = COVERED, **changed: str) -> Answer:
        body = base64.b64decode(frame.get("body", ""))
        named = {name: value for name, value in frame["headers"].items() if not name.startswith("X-Scion")}
        cover_these = {name: named[name] for name in cover if name in named}
        proof = wire.signed_headers(
            BROKER_ID,
            SECRET,
            frame["method"],
            frame["path"],
            frame["query"],
            body,
            now=int(time.time()),
            cover=cover_these,
        )
        headers = {**named, **proof, **{name.replace("_", "-"): value for name, value in changed.items()}}
        return await self.send(frame["method"], f"{frame['path']}?{frame['query']}", headers, body)

    async def send(self, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            got = await client.request(method, f"{self.url}{target}", headers=headers, content=body)
        assert got.headers["x-scion-broker-id"] == BROKER_ID
        return Answer(status=got.status_code, headers=dict(got.headers), body=got.content, socket=-1)


@pytest.fixture
async def door(idle_broker: BrokerProcess) -> Door:
    """Of a broker that also keeps its socket."""
    port = a_free_port()
    await idle_broker.begin(listen=f"127.0.0.1:{port}")
    return Door(port)


def creation(hub: FakeHub, agent: Agent, **more: Any) -> Frame:
    body = agent.creation({"command": ["cat"], "stopGrace": "5s"})
    return hub.frame("POST", "/api/v1/agents", body, agent=agent.id, **more)


async def test_a_dispatch_takes_effect_once_whichever_way_it_comes(hub: FakeHub, door: Door) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    first = await door.ask(creation(hub, agent, dispatch=dispatch))
    again = await agent.create(dispatch=dispatch)
    assert (first.status, again.status) == (201, 201)
    assert first.body == again.body
    assert len(processes_with(agent.runs[0])) == 1
    assert processes_with(agent.runs[1]) == []


async def test_a_repeat_over_http_joins_what_runs_for_a_socket(hub: FakeHub, door: Door) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create(DEAF, config={"stopGrace": "1500ms"})
    await agent.logged("deaf")
    frame = agent.asking("stop", dispatch=dispatch)
    await hub.send(frame)
    await hub.begun(frame)
    about = await door.ask(hub.frame("GET", INFO))
    assert dispatch in about.json["working"]
    over_http = await door.ask(agent.asking("stop", dispatch=dispatch))
    assert (over_http.status, over_http.body) == (200, (await hub.answer(frame["requestId"])).body)


async def test_it_says_what_a_connect_frame_would_say(hub: FakeHub, door: Door) -> None:
    about = (await door.ask(hub.frame("GET", INFO))).json
    said = hub.newest.connect
    assert about["brokerId"] == BROKER_ID
    assert (about["capabilities"], about["instance"]) == (said["capabilities"], said["instance"])
    assert (about["window"], about["epoch"], about["working"]) == (said["window"], hub.newest.epoch, [])


async def test_a_higher_epoch_that_comes_with_a_request_is_on_disk_before_it_runs(
    hub: FakeHub, door: Door, idle_broker: BrokerProcess
) -> None:
    higher = hub.newest.epoch + 10
    assert (await door.ask(creation(hub, Agent(hub), epoch=higher))).status == 201
    late = Agent(hub)
    refused = await late.create(epoch=higher - 1)
    assert (refused.status, refused.code) == (412, "stale_epoch")
    assert (await door.ask(creation(hub, late, epoch=higher - 1))).status == 412
    hub.epoch = higher
    await idle_broker.again()
    assert hub.newest.connect["lastEpoch"] == higher


async def test_an_epoch_that_was_not_signed_for_is_not_believed(hub: FakeHub, door: Door) -> None:
    bare = tuple(name for name in COVERED if name != wire.DISPATCH_EPOCH)
    refused = await door.ask(creation(hub, Agent(hub), epoch=1_000), cover=bare)
    assert (refused.status, refused.code) == (401, "invalid_signature")
    changed = await door.ask(creation(hub, Agent(hub)), X_Dispatch_Epoch="1000")
    assert (changed.status, changed.code) == (401, "invalid_signature")
    assert (await Agent(hub).create()).status == 201


async def test_a_request_is_good_once(hub: FakeHub, door: Door) -> None:
    frame = hub.frame("GET", INFO)
    proof = wire.signed_headers(BROKER_ID, SECRET, "GET", INFO, frame["query"], now=int(time.time()))
    target = f"{INFO}?{frame['query']}"
    assert (await door.send("GET", target, proof)).status == 200
    assert (await door.send("GET", target, proof)).code == "replay_detected"


async def test_a_body_beyond_the_limit_is_refused(hub: FakeHub, door: Door) -> None:
    frame = hub.frame("POST", "/api/v1/agents", {"filler": "x" * (wire.FRAME_LIMIT + 1)})
    refused = await door.ask(frame)
    assert (refused.status, refused.code) == (413, "payload_too_large")


async def test_what_runs_is_cancelled_over_http(hub: FakeHub, door: Door) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create()
    command = {"command": ["sleep", "60"], "timeout": 60}
    told: list[Answer] = []

    async def execute() -> None:
        told.append(await door.ask(agent.asking("exec", command, dispatch=dispatch)))

    async def works() -> bool:
        return dispatch in (await door.ask(hub.frame("GET", INFO))).json["working"]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(execute)
        await eventually(works, "the command runs")
        path = f"/api/v1/dispatches/{dispatch}/cancel"
        assert (await door.ask(hub.frame("POST", path, epoch=0))).status == 412
        assert (await door.ask(hub.frame("POST", path))).status == 202
    assert (told[0].status, told[0].code) == (499, "cancelled")


async def test_a_caller_who_leaves_changes_nothing(hub: FakeHub, door: Door) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create(DEAF, config={"stopGrace": "1s"})
    await agent.logged("deaf")
    with anyio.move_on_after(0.3):
        await door.ask(agent.asking("stop", dispatch=dispatch))
    again = await door.ask(agent.asking("stop", dispatch=dispatch))
    assert (again.status, again.json["phase"]) == (200, "stopped")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:", "127.0.0.1:99999", "300.1.1.1:80"])
async def test_an_address_that_cannot_be_listened_on_stops_the_start(idle_broker: BrokerProcess, address: str) -> None:
    idle_broker.run(listen=address)
    assert await idle_broker.process.ended() != 0
    assert "cannot listen on" in idle_broker.process.tail()


async def test_a_broker_that_does_not_dial_must_listen(idle_broker: BrokerProcess) -> None:
    idle_broker.run(dial=False)
    assert await idle_broker.process.ended() != 0
    assert "--listen" in idle_broker.process.tail()
