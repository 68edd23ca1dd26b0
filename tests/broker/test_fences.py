"""What the broker refuses, and in whose turn it works."""

from __future__ import annotations

import time
import uuid

import pytest

from tests.broker.agents import DEAF, Agent, processes_with
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import BROKER_ID, SECRET, FakeHub
from tests.broker.sharing import broker, hub, shared
from tests.harness.processes import eventually
from tests.harness.signing import signed

__all__ = ["broker", "hub", "shared"]
pytestmark = pytest.mark.anyio
INFO = "/api/v1/info"


async def test_a_known_id_is_answered_whatever_its_epoch(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    first = await agent.create(dispatch=dispatch)
    assert (await agent.create(dispatch=dispatch, epoch=0)).body == first.body


async def test_a_request_whose_time_is_over_when_its_turn_comes_is_not_run(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(DEAF, config={"stopGrace": "500ms"})
    await agent.logged("deaf")
    stop = agent.asking("stop")
    start = agent.asking("start", agent.body({"command": ["cat"]}), timeout=100)
    await hub.send(stop, start)
    assert (await hub.answer(start["requestId"])).status == 408
    assert (await hub.answer(stop["requestId"])).status == 200
    assert processes_with(agent.runs[1]) == []
    assert (await hub.ask("GET", INFO, timeout=0)).status == 408


async def test_operations_of_one_agent_wait_and_others_do_not(hub: FakeHub, broker: BrokerProcess) -> None:
    slow, other = Agent(hub), Agent(hub)
    await slow.create(DEAF, config={"stopGrace": "1s"})
    await slow.logged("deaf")
    stop = slow.asking("stop")
    start = slow.asking("start", slow.body({"command": ["cat"]}))
    await hub.send(stop, start)
    assert (await other.create()).status == 201
    assert stop["requestId"] not in hub.answers, "another agent, and reading, do not wait"
    assert (await slow.log(tail=1)) == "deaf\n"
    assert (await hub.answer(start["requestId"])).json["phase"] == "running"
    assert list(hub.answers).index(stop["requestId"]) < list(hub.answers).index(start["requestId"])
    assert hub.accepted.index(stop["requestId"]) < hub.accepted.index(start["requestId"])


async def test_a_cancel_stops_what_has_not_begun(hub: FakeHub, broker: BrokerProcess) -> None:
    agent, dispatch = Agent(hub), str(uuid.uuid4())
    await agent.create(DEAF, config={"stopGrace": "600ms"})
    await agent.logged("deaf")
    stop = agent.asking("stop")
    body = agent.body({"command": ["cat"]})
    start = agent.asking("start", body, dispatch=dispatch)
    cancel = {"type": "cancel", "requestId": start["requestId"], "dispatchId": dispatch}
    await hub.send(stop, start, cancel)
    cancelled = await hub.answer(start["requestId"])
    assert (cancelled.status, cancelled.code) == (499, "cancelled")
    await hub.send({"type": "cancel", "requestId": stop["requestId"]})
    assert (await hub.answer(stop["requestId"])).status == 200, "what cannot be stopped is told as it ends"
    assert processes_with(agent.runs[1]) == []
    again = await agent.post("start", body, dispatch=dispatch)
    assert again.status == 499


FORGED: list[dict[str, str]] = [
    {"X-Scion-Signature": "AAAA"},
    {"X-Scion-Signature": "ü"},
    {"X-Scion-Timestamp": "soon"},
    {"X-Scion-Nonce": "short"},
    {"X-Scion-Broker-ID": "another"},
    {"X-Scion-Signed-Headers": "X-Dispatch-Id"},
    signed(BROKER_ID, b"another secret", "GET", INFO),
    signed(BROKER_ID, SECRET, "POST", INFO),
]


async def test_a_request_that_is_not_rightly_signed_is_refused(hub: FakeHub, broker: BrokerProcess) -> None:
    for headers in FORGED:
        answer = await hub.ask("GET", INFO, headers=headers)
        assert (answer.status, answer.code) == (401, "invalid_signature"), headers


async def test_old_and_replayed_signatures_are_refused(hub: FakeHub, broker: BrokerProcess) -> None:
    query = hub.frame("GET", INFO)["query"]
    old = signed(BROKER_ID, SECRET, "GET", INFO, query=query, timestamp=int(time.time()) - 301)
    assert (await hub.ask("GET", INFO, headers=old)).code == "clock_skew"
    good = signed(BROKER_ID, SECRET, "GET", INFO, query=query)
    assert (await hub.ask("GET", INFO, headers=good)).status == 200
    assert (await hub.ask("GET", INFO, headers=good)).code == "replay_detected"


async def test_stripped_requests_are_refused_and_health_needs_no_signature(hub: FakeHub, broker: BrokerProcess) -> None:
    await hub.send({"type": "request", "requestId": "bare", "method": "GET", "path": INFO})
    assert (await hub.answer("bare")).status == 401
    await hub.send({"type": "request", "requestId": "health", "method": "GET", "path": "/healthz"})
    assert (await hub.answer("health")).json == {"status": "ok"}


async def test_covered_headers_are_part_of_the_signature(hub: FakeHub, broker: BrokerProcess) -> None:
    query = hub.frame("GET", INFO)["query"]
    headers = signed(BROKER_ID, SECRET, "GET", INFO, query=query, cover={"X-Dispatch-Timeout-Ms": "5000"})
    assert (await hub.ask("GET", INFO, headers=headers)).status == 200
    headers = signed(BROKER_ID, SECRET, "GET", INFO, query=query, cover={"X-Dispatch-Timeout-Ms": "5000"})
    forged = {**headers, "X-Dispatch-Timeout-Ms": "60000"}
    assert (await hub.ask("GET", INFO, headers=forged)).status == 401


SENSELESS: list[tuple[str, str, object, int]] = [
    ("GET", "/api/v1/nowhere", None, 404),
    ("POST", "/api/v1/agents/one/dance", {}, 404),
    ("POST", "/api/v1/agents", [1], 400),
    ("POST", "/api/v1/agents", {"slug": "one"}, 400),
    ("GET", "/api/v1/agents/one", None, 404),
    ("GET", "/api/v1/agents/one/logs", None, 404),
    ("POST", "/api/v1/agents/one/start", {}, 404),
    ("POST", "/api/v1/agents/one/exec", {"command": ["true"]}, 404),
    ("POST", "/api/v1/agents/one/finalize-env", {"env": {}}, 404),
]


async def test_requests_that_make_no_sense_are_refused(hub: FakeHub, broker: BrokerProcess) -> None:
    for method, path, body, status in SENSELESS:
        answer = await hub.ask(method, path, body)
        assert (answer.status, bool(answer.json["error"]["message"])) == (status, True), (method, path)


async def test_numbers_in_headers_are_checked(hub: FakeHub, broker: BrokerProcess) -> None:
    answer = await hub.ask("GET", INFO, headers={"X-Dispatch-Epoch": "-1"})
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_everything_at_once_is_served(hub: FakeHub, broker: BrokerProcess) -> None:
    frames = [hub.frame("GET", INFO) for _ in range(500)]
    await hub.send(*frames)

    async def all_there() -> bool:
        return all(frame["requestId"] in hub.answers for frame in frames)

    await eventually(all_there, "all answers")
    assert {hub.answers[frame["requestId"]].status for frame in frames} == {200}
