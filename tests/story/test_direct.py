"""DIRECT: a broker without a socket is called at its own endpoint, as a link like any other (section 6)."""

from __future__ import annotations

import base64
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest
from anyio.abc import SocketAttribute, SocketStream

from kernel import wire
from tests.broker.agents import DEAF, ECHO
from tests.harness.directbroker import DirectScene, direct_scene
from tests.harness.endpoint import served
from tests.harness.history import History
from tests.harness.hubclient import HubClient
from tests.harness.hubprocess import HubProcess
from tests.harness.processes import eventually
from tests.harness.proxy import Proxy
from tests.harness.scenes import Background

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

pytestmark = pytest.mark.anyio
IDLE = {"channel.direct_idle": "3s", "sweep.nodes": "300ms"}


@pytest.fixture(scope="module")
async def caller(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HubProcess]:
    """A hub that lets go of endpoints soon."""
    async with HubProcess(tmp_path_factory.mktemp("caller"), settings=IDLE) as served:
        yield served


@pytest.fixture
async def api(caller: HubProcess, tmp_path: Path) -> AsyncIterator[HubClient]:
    history = History(tmp_path / "calls.jsonl")
    client = HubClient(caller.url, caller.ready["token"], history)
    yield client
    await client.close()
    history.close()


@pytest.fixture
async def direct(api: HubClient, tmp_path: Path) -> AsyncIterator[DirectScene]:
    async with direct_scene(api, tmp_path) as made:
        yield made


# -- a straight line ---------------------------------------------------------------------------------------------------


async def test_a_lifecycle_over_the_endpoint(direct: DirectScene) -> None:
    agent = await direct.agent(ECHO)
    assert agent["phase"] == "running"
    for op, phase in (("stop", "stopped"), ("start", "running"), ("suspend", "suspended"), ("restart", "running")):
        answer = (await direct.api.do(op, agent["id"])).expect(200)
        assert answer.json["phase"] == phase
        row = await direct.api.dispatch(answer.dispatch)
        assert (row["route"], row["state"], row["attempts"]) == ("direct", "done", 1)
        assert row["sentAt"]
    assert (await direct.api.ask("GET", f"/agents/{agent['id']}/has-prompt")).expect(200).json == {"hasPrompt": False}
    (await direct.api.delete(agent["id"])).expect(204)


async def test_messages_over_the_endpoint_in_their_order(direct: DirectScene) -> None:
    agent = await direct.agent(ECHO)
    texts = [f"message {n}" for n in range(5)]
    sent = [(await direct.api.message(agent["id"], text)).expect(202).dispatch for text in texts]
    for dispatch in sent:
        assert (await direct.api.ended(dispatch))["state"] == "done"

    async def read() -> bool:
        log = direct.broker.log_of(agent["id"])
        places = [log.find(f'"message":"{text}"') for text in texts]
        return -1 not in places and places == sorted(places)

    await eventually(read, "the agent has read all messages, in order")


async def test_it_never_makes_the_broker_online_and_is_let_go_when_idle(direct: DirectScene) -> None:
    agent = await direct.agent(ECHO)
    held = await direct.row()
    assert held["connectedHubId"]
    assert held["status"] == "offline"
    epoch = (await direct.api.all_dispatches(brokerId=direct.broker.id))[0]["claimedEpoch"]
    idle = await direct.let_go()
    assert idle["status"] == "offline"
    row = await direct.api.dispatch((await direct.api.do("stop", agent["id"])).expect(200).dispatch)
    assert row["claimedEpoch"] == epoch + 1
    assert (await direct.row())["status"] == "offline"


async def test_what_an_agent_becomes_by_itself_is_told_over_http(direct: DirectScene) -> None:
    agent = await direct.agent("input()")
    (await direct.api.message(agent["id"], "go on", prefer="wait=20")).expect(200)
    await direct.api.agent_is(agent["id"], "stopped")


async def test_progress_resets_the_window_of_who_waits(direct: DirectScene) -> None:
    agent = await direct.agent(DEAF, stopGrace="8s")
    answer = await direct.api.do("stop", agent["id"], prefer="wait=30")
    assert answer.expect(200).json["phase"] == "stopped"
    row = await direct.api.dispatch(answer.dispatch)
    assert row["acceptedAt"]
    assert row["attempts"] == 1


async def test_what_is_under_way_can_be_cancelled(direct: DirectScene) -> None:
    agent = await direct.agent(DEAF)
    full = "x" * 60_000
    for _ in range(20):
        sent = (await direct.api.message(agent["id"], full)).expect(202).dispatch
    await direct.api.state_is(sent, "pending", "in_progress")
    assert (await direct.api.cancel(sent)).expect(200).json["outcome"] in ("cancelled", "cancel_requested")
    assert (await direct.api.ended(sent))["state"] == "cancelled"


# -- an endpoint that does not answer --------------------------------------------------------------------------------


async def test_a_silent_endpoint_refuses_what_does_not_wait_and_stores_nothing(direct: DirectScene) -> None:
    agent = await direct.agent(ECHO)
    await direct.let_go()
    direct.broker.proxy.refuse()
    direct.broker.proxy.cut()
    before = len(await direct.api.all_dispatches(brokerId=direct.broker.id))
    for answer in (
        await direct.api.do("stop", agent["id"]),
        await direct.api.do("stop", agent["id"]),
        await direct.api.message(agent["id"], "at once", prefer="deliver=now"),
    ):
        assert answer.expect(503).code == "runtime_broker_unavailable"
        assert answer.headers["retry-after"]
    assert len(await direct.api.all_dispatches(brokerId=direct.broker.id)) == before


async def test_what_waits_is_delivered_once_the_endpoint_answers(direct: DirectScene) -> None:
    agent = await direct.agent(ECHO)
    await direct.let_go()
    direct.broker.proxy.refuse()
    direct.broker.proxy.cut()
    message = (await direct.api.message(agent["id"], "later")).expect(202).dispatch
    stop = (await direct.api.do("stop", agent["id"], prefer="deliver=hold, respond-async")).expect(202).dispatch
    await anyio.sleep(1.0)
    assert (await direct.api.explain(stop))["code"] == "waiting_broker"
    direct.broker.proxy.heal()
    assert (await direct.api.ended(stop))["state"] == "done"
    row = await direct.api.dispatch(message)
    assert row["state"] == "pending", "it waits for the next run of its agent"


async def test_deliver_now_is_taken_when_the_endpoint_answers(direct: DirectScene) -> None:
    agent = await direct.agent(ECHO)
    await direct.let_go()
    answer = (await direct.api.message(agent["id"], "at once", prefer="deliver=now, wait=20")).expect(200)
    assert (await direct.api.dispatch(answer.dispatch))["state"] == "done"


async def test_an_agent_is_created_with_a_broker_that_only_has_an_endpoint(direct: DirectScene) -> None:
    body = {"name": "placed", "projectId": direct.project, "config": {"command": ["sleep", "60"]}}
    await direct.api.ask("PATCH", f"/projects/{direct.project}", {"defaultRuntimeBrokerId": direct.broker.id})
    agent = (await direct.api.ask("POST", "/agents", body)).expect(201).json["agent"]
    assert (agent["runtimeBrokerId"], agent["phase"]) == (direct.broker.id, "running")


async def test_no_agent_is_left_of_a_creation_that_the_endpoint_never_got(api: HubClient, tmp_path: Path) -> None:
    async with direct_scene(api, tmp_path, running=False) as direct:
        answer = await api.post_agent(direct.project, direct.broker.id, "nobody")
        assert answer.expect(503).code == "runtime_broker_unavailable"
        assert (await api.get("/agents", projectId=direct.project))["agents"] == []


async def test_the_endpoint_of_another_broker_gets_no_work(api: HubClient, tmp_path: Path, direct: DirectScene) -> None:
    """Only the broker itself is called: an address that answers as somebody else is none."""
    other = await api.register_broker(endpoint=direct.broker.proxy.url)
    answer = await api.post_agent(direct.project, other["broker_id"], "stray")
    assert answer.expect(503).code == "runtime_broker_unavailable"
    assert "endpoint" in answer.json["error"]["message"]


# -- lost in the middle ----------------------------------------------------------------------------------------------


async def stopping(direct: DirectScene, tasks: TaskGroup, grace: str = "4s") -> tuple[str, Background]:
    """An agent that takes a while to stop, and the call that waits for it."""
    agent = await direct.agent(DEAF, stopGrace=grace)

    async def deaf() -> bool:
        return "deaf" in direct.broker.log_of(agent["id"])

    await eventually(deaf, "the agent ignores TERM")
    call = Background()
    tasks.start_soon(call.run, lambda: direct.api.do("stop", agent["id"], prefer="wait=50"))

    async def under_way() -> bool:
        found = await direct.api.all_dispatches(agentId=agent["id"])
        return any(row["op"] == "stop" and row["acceptedAt"] for row in found)

    await eventually(under_way, "the broker works at the stop")
    return agent["id"], call


async def test_an_answer_that_is_cut_off_is_asked_for_again_and_happens_once(
    direct: DirectScene, tasks: TaskGroup
) -> None:
    agent_id, call = await stopping(direct, tasks)
    assert direct.broker.proxy.cut() > 0
    answer = (await call.answered()).expect(200)
    row = await direct.api.dispatch(answer.dispatch)
    assert row["state"] == "done"
    assert row["attempts"] > 1
    assert len(direct.broker.runs(agent_id)) == 1


async def test_a_black_hole_is_noticed_and_driven_again(direct: DirectScene, tasks: TaskGroup) -> None:
    _, call = await stopping(direct, tasks, grace="2s")
    direct.broker.proxy.stall()
    await direct.let_go()
    direct.broker.proxy.heal()
    row = await direct.api.dispatch((await call.answered()).expect(200).dispatch)
    assert (row["state"], row["attempts"] > 1) == ("done", True)


async def test_a_broker_that_is_killed_in_the_middle_ends_it_when_it_is_back(
    direct: DirectScene, tasks: TaskGroup
) -> None:
    agent_id, call = await stopping(direct, tasks)
    direct.broker.kill()
    await direct.broker.start([direct.api.url])
    row = await direct.api.dispatch((await call.answered()).expect(200).dispatch)
    assert (row["state"], row["attempts"] > 1) == ("done", True)
    assert (await direct.api.agent(agent_id))["phase"] == "stopped"


async def test_a_hub_that_is_killed_in_the_middle_leaves_it_to_the_next(tmp_path: Path, tasks: TaskGroup) -> None:
    async with HubProcess(tmp_path / "hub", settings=IDLE) as hub, direct_scene(hub.api, tmp_path / "far") as direct:
        agent_id, call = await stopping(direct, tasks)
        hub.kill()
        await call.broken()
        await hub.restart()
        [row] = [row for row in await hub.api.all_dispatches(agentId=agent_id) if row["op"] == "stop"]
        row = await hub.api.ended(row["id"])
        assert (row["state"], row["attempts"] > 1) == ("done", True)
        assert row["claimedEpoch"] >= 2
        assert (await hub.api.agent(agent_id))["phase"] == "stopped"


async def over(call: Background) -> bool:
    return not call.running


async def test_a_hub_that_is_stopped_lets_the_endpoint_go_in_order(tmp_path: Path, tasks: TaskGroup) -> None:
    async with HubProcess(tmp_path / "hub", settings=IDLE) as hub, direct_scene(hub.api, tmp_path / "far") as direct:
        agent_id, call = await stopping(direct, tasks)
        assert await hub.terminate() == 0
        await eventually(lambda: over(call), "the caller was told something, or cut off")
        answer = call.answer
        await hub.restart()
        if answer is None or answer.status == 202:
            [row] = [row for row in await hub.api.all_dispatches(agentId=agent_id) if row["op"] == "stop"]
            assert (await hub.api.ended(row["id"]))["state"] == "done"
        else:
            answer.expect(200)
        assert (await hub.api.agent(agent_id))["phase"] == "stopped"


@asynccontextmanager
async def gateway() -> AsyncIterator[int]:
    """The port of something that answers 502 to whatever it is asked."""

    async def refuse(stream: SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive()
                await stream.send(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as serving,
    ):
        serving.start_soon(listener.serve, refuse)
        yield listener.extra(SocketAttribute.local_port)
        serving.cancel_scope.cancel()


async def test_something_in_between_that_answers_in_the_brokers_place_ends_nothing(
    direct: DirectScene, tasks: TaskGroup
) -> None:
    """A gateway's 502 says nothing of the work: it is driven again, and never `failed`."""
    agent = await direct.agent(ECHO)
    way, target = direct.broker.proxy, direct.broker.proxy.target
    async with gateway() as port:
        way.retarget(port)
        way.cut()
        call = Background()
        tasks.start_soon(call.run, lambda: direct.api.do("stop", agent["id"], prefer="wait=50"))
        await direct.let_go()
        way.retarget(target)
        row = await direct.api.dispatch((await call.answered()).expect(200).dispatch)
        assert (row["state"], row["attempts"] > 1, row["failures"]) == ("done", True, 0)


# -- a socket wins -----------------------------------------------------------------------------------------------------


async def test_a_socket_replaces_the_link_and_what_was_under_way_goes_on(
    caller: HubProcess, api: HubClient, tmp_path: Path, tasks: TaskGroup
) -> None:
    with Proxy(caller.port) as way:
        way.refuse()
        async with direct_scene(api, tmp_path, dial=True, running=False) as direct:
            await direct.broker.start([way.url])
            agent_id, call = await stopping(direct, tasks)
            assert (await direct.row())["status"] == "offline"
            way.heal()
            await api.broker_is(direct.broker.id, "online")
            row = await api.dispatch((await call.answered()).expect(200).dispatch)
            assert (row["state"], row["attempts"] > 1) == ("done", True)
            assert len(direct.broker.runs(agent_id)) == 1
            started = await api.dispatch((await api.do("start", agent_id)).expect(200).dispatch)
            assert started["route"] == "local"
            way.refuse()
            way.cut()
            again = await api.dispatch((await api.do("stop", agent_id, prefer="wait=30")).expect(200).dispatch)
            assert again["state"] == "done"
            assert (await direct.row())["status"] == "offline"


# -- brokers of another make -------------------------------------------------------------------------------------------


async def test_a_stock_broker_is_called_with_what_it_knows(api: HubClient) -> None:
    """No capabilities: a restart goes as stop, then start, and each request is signed."""
    identity = await api.register_broker()
    with served(identity["broker_id"], base64.b64decode(identity["secret"])) as endpoint:
        endpoint.told("/api/v1/info", 200, {"brokerId": identity["broker_id"], "capabilities": {"pty": True}})
        endpoint.told("/api/v1/agents", 201, {"agent": {"phase": "running"}, "created": True})
        endpoint.told("/api/v1/agents/plain/stop", 202, {"status": "accepted"})
        endpoint.told("/api/v1/agents/plain/start", 202, {"agent": {"phase": "running"}})
        endpoint.told("/api/v1/agents/plain", 204)
        await api.ask("PATCH", f"/runtime-brokers/{identity['broker_id']}", {"endpoint": endpoint.url})
        agent = await api.create_agent(await api.create_project(), identity["broker_id"], "plain")
        assert (await api.do("restart", agent["id"])).expect(200).json["phase"] == "running"
        (await api.delete(agent["id"])).expect(204)
        asked = [line.partition("?")[0] for line, headers, _ in endpoint.seen if wire.DISPATCH_ID in headers]
        assert asked == [
            "POST /api/v1/agents",
            "POST /api/v1/agents/plain/stop",
            "POST /api/v1/agents/plain/start",
            "DELETE /api/v1/agents/plain",
        ]


# -- the endpoint itself -----------------------------------------------------------------------------------------------


async def test_the_endpoint_takes_nothing_that_is_not_signed(direct: DirectScene) -> None:
    agent = await direct.agent(ECHO)
    url = f"{direct.broker.proxy.url}/api/v1/agents/{agent['slug']}/stop"
    async with httpx2.AsyncClient(trust_env=False) as client:
        for headers in ({}, {"X-Scion-Signature": "bm8=", "X-Dispatch-Epoch": "99"}):
            answer = await client.post(url, json={"projectId": direct.project}, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_signature"
        assert (await client.get(f"{direct.broker.proxy.url}/healthz")).status_code == 200
    assert (await direct.api.do("start", agent["id"])).expect(200).json["phase"] == "running"


@pytest.mark.parametrize(
    "endpoint",
    ["ftp://broker.example", "broker.example", "http://", "http://u:p@broker.example", "http://broker.example/v1",
     "http://broker.example?x=1", "http://169.254.169.254", "http://[fe80::1]", "http://0.0.0.0", "http://h:99999"],
)  # fmt: skip
async def test_an_endpoint_that_no_hub_would_call_is_refused(api: HubClient, endpoint: str) -> None:
    asked = {"name": f"broker-{uuid.uuid4().hex[:8]}", "endpoint": endpoint}
    answer = (await api.ask("POST", "/brokers", asked)).expect(400)
    assert answer.code == "validation_error"
    assert "endpoint" in answer.json["error"]["details"]["fields"]


async def test_an_endpoint_is_set_changed_and_taken_away(direct: DirectScene) -> None:
    path = f"/runtime-brokers/{direct.broker.id}"
    url = direct.broker.proxy.url
    agent = await direct.agent(ECHO)
    assert (await direct.row())["endpoint"] == url
    gone = (await direct.api.ask("PATCH", path, {"endpoint": ""})).expect(200).json
    assert gone["endpoint"] is None
    await direct.let_go()
    (await direct.api.do("stop", agent["id"], prefer="wait=20")).expect(503)
    back = (await direct.api.ask("PATCH", path, {"endpoint": f"{url}/"})).expect(200).json
    assert back["endpoint"] == url
    (await direct.api.do("stop", agent["id"])).expect(200)
