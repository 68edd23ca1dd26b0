"""The socket: dialled, kept, handed over, and never harmed by what comes on it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import anyio
import pytest

from broker import BrokerSettings, run_broker
from broker.identity import Identity, save_identity
from tests.broker.agents import DEAF, Agent, processes_with
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import BROKER_ID, SECRET, FakeHub, fake_hub
from tests.harness.processes import eventually

pytestmark = pytest.mark.anyio
INFO = "/api/v1/info"


async def test_bad_frames_are_told_and_do_no_harm(hub: FakeHub, broker: BrokerProcess) -> None:
    line = hub.newest
    for bad in ("{", "5", "null", '{"type":"dance"}', '{"type":"request"}', "[" * 5_000, '{"type":"response"}'):
        await line.ws.send(bad)
    await line.ws.send(b'{"type":"ping"}')
    assert (await hub.ask("GET", INFO)).status == 200
    errors = [frame for _, frame in hub.frames if frame["type"] == "error"]
    assert [frame["code"] for frame in errors] == ["invalid_message"] * 8
    assert line.open


async def test_a_json_ping_is_answered(hub: FakeHub, broker: BrokerProcess) -> None:
    await hub.send({"type": "ping", "timestamp": 5})

    async def ponged() -> bool:
        return any(frame["type"] == "pong" for _, frame in hub.frames)

    await eventually(ponged, "pong")


async def test_a_stream_is_closed_at_once(hub: FakeHub, broker: BrokerProcess) -> None:
    await hub.send({"type": "stream_open", "streamId": "s", "streamType": "pty"})

    async def closed() -> bool:
        return any(frame["type"] == "stream_close" and frame["streamId"] == "s" for _, frame in hub.frames)

    await eventually(closed, "stream_close")


async def test_an_answer_that_fits_no_frame_is_replaced_and_kept(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    body = {"command": ["sh", "-c", "echo x >> times; head -c 1500000 /dev/zero | tr '\\0' x"]}
    for _ in range(2):
        answer = await agent.post("exec", body, dispatch="large")
        assert (answer.status, answer.code) == (413, "response_too_large")
    assert (await agent.post("exec", {"command": ["cat", "times"]})).json["output"] == "x\n"
    assert hub.newest.open


async def test_a_frame_that_is_too_large_costs_the_socket_and_not_the_broker(
    hub: FakeHub, broker: BrokerProcess
) -> None:
    await hub.newest.ws.send(json.dumps({"type": "ping", "more": "x" * 1_100_000}))
    await hub.line(1)
    assert hub.closed[0][1] == 1009
    assert (await hub.ask("GET", INFO)).status == 200


async def test_a_slow_operation_blocks_neither_pings_nor_other_requests(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create(DEAF, config={"stopGrace": "1s"})
    await agent.logged("deaf")
    stop = agent.asking("stop")
    await hub.send(stop)
    pong = await hub.newest.ws.ping()
    with anyio.fail_after(20):
        await pong
    assert (await hub.ask("GET", INFO)).status == 200
    assert stop["requestId"] not in hub.answers
    assert (await hub.answer(stop["requestId"])).status == 200


async def test_reconnect_dials_the_next_hub_before_it_leaves(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    async with fake_hub() as second:
        second.epoch = 100
        await idle_broker.begin(hubs=[hub.url, second.url])
        agent = Agent(hub)
        await agent.create(DEAF, config={"stopGrace": "600ms"})
        await agent.logged("deaf")
        stop = agent.asking("stop", dispatch="stop-1")
        await hub.send(stop, {"type": "reconnect", "afterMs": 0, "deadlineMs": 20_000})
        await second.line()
        assert hub.lines[0].open, "the old socket stands until the new one does"
        joined = second.frame("POST", f"/api/v1/agents/{agent.slug}/stop", {}, agent=agent.id, dispatch="stop-1")
        await second.send(joined)
        assert (await second.answer(joined["requestId"])).status == 200
        assert (await hub.answer(stop["requestId"])).status == 200, "answers go out on the socket that asked"

        async def left() -> bool:
            return not hub.lines[0].open

        await eventually(left, "the old socket to be closed")
        assert hub.closed == [(0, 1000, "reconnect")]
        assert gaps(idle_broker) == [0.0, 0.0]
        assert (await second.event("agent_status", phase="stopped"))["agentId"] == agent.id


def gaps(broker: BrokerProcess) -> list[float]:
    """For each session, how long the broker was without one before."""
    return [float(gap) for gap in re.findall(r"connected to .* gap (\d+\.\d+) s", broker.process.tail())]


async def test_a_broker_tells_how_long_it_was_without_a_session(hub: FakeHub, broker: BrokerProcess) -> None:
    await hub.send({"type": "reconnect", "afterMs": 700})
    await hub.newest.ws.close(4503, "draining")
    await hub.line(1)

    async def told() -> list[float] | None:
        return found if len(found := gaps(broker)) == 2 else None

    first, second = await eventually(told, "two gaps")
    assert first == 0.0
    assert 0.5 < second < 20


async def test_a_hand_over_ends_the_old_socket_at_its_deadline(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    """The deadline counts from the advice on, however late the broker left."""
    async with fake_hub() as second:
        second.epoch = 100
        await idle_broker.begin(hubs=[hub.url, second.url])
        agent = Agent(hub)
        await agent.create(DEAF, config={"stopGrace": "30s"})
        await agent.logged("deaf")
        began = anyio.current_time()
        await hub.send(agent.asking("stop"), {"type": "reconnect", "afterMs": 600, "deadlineMs": 1_200})
        await second.line()

        async def left() -> bool:
            return not hub.lines[0].open

        await eventually(left, "the old socket to be closed")
        assert anyio.current_time() - began > 1.1
        assert hub.closed == [(0, 1000, "reconnect")]


async def test_the_hubs_word_about_when_to_come_back_wins(hub: FakeHub, broker: BrokerProcess) -> None:
    await hub.send({"type": "reconnect", "afterMs": 900, "deadlineMs": 5_000})
    await hub.newest.ws.close(4503, "draining")
    before = anyio.current_time()
    await hub.line(1)
    assert anyio.current_time() - before > 0.8


async def test_a_hand_over_that_finds_no_hub_keeps_the_old_socket(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    await idle_broker.begin(hubs=[hub.url, "http://127.0.0.1:9"])
    await hub.send({"type": "reconnect", "afterMs": 0})
    await hub.line(1)
    assert len(hub.lines) == 2

    async def left() -> bool:
        return not hub.lines[0].open

    await eventually(left, "the old socket to be closed")
    assert (await hub.ask("GET", INFO)).status == 200


async def test_a_broker_whose_identity_is_used_twice_stays_away_for_a_while(
    hub: FakeHub, idle_broker: BrokerProcess
) -> None:
    await idle_broker.begin(other_instance_wait=0.9)
    await hub.newest.ws.close(4409, "other_instance")
    before = anyio.current_time()
    await hub.line(1)
    assert anyio.current_time() - before > 0.8
    assert "identity" in idle_broker.process.tail()


async def test_refused_upgrades_are_tried_again_after_the_time_that_the_hub_names(
    hub: FakeHub, idle_broker: BrokerProcess
) -> None:
    answers = [(429, {"Retry-After": "1"}), (503, {}), (401, {}), (404, {})]
    error = {"error": {"code": "rate_limited", "message": "slowly"}}
    hub.refuse = lambda: (*answers.pop(0), error) if answers else None
    before = anyio.current_time()
    await idle_broker.begin()
    assert anyio.current_time() - before > 0.9
    assert len(hub.upgrades) == 5
    log = idle_broker.process.tail()
    assert "429 rate_limited: slowly" in log
    assert "register it again" in log


async def test_a_hub_that_does_not_begin_with_connected_is_left(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    hub.first = [{"type": "ping"}, {"nonsense": 1}]
    await idle_broker.begin()
    assert len(hub.upgrades) == 3


async def test_a_hub_that_says_nothing_is_left(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    hub.first = [{"type": "error", "code": "auth_failed", "message": "no"}]
    await idle_broker.begin(handshake=0.5)
    assert "auth_failed" in idle_broker.process.tail()


async def test_a_frozen_hub_is_left_when_it_was_silent_for_too_long(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    await idle_broker.begin(ping=0.2, dead_after=0.6)
    hub.newest.ws.transport.pause_reading()
    await hub.line(1)
    hub.lines[0].ws.transport.abort()
    assert (await hub.ask("GET", INFO)).status == 200


async def test_an_orderly_stop_says_good_bye_and_leaves_the_agents(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create()
    assert await broker.stop() == 0

    async def closed() -> bool:
        return bool(hub.closed)

    await eventually(closed, "the socket to be closed")
    assert hub.closed[0][1] == 1000
    await broker.begin()
    assert (await agent.message("still there")).status == 200


async def test_an_orderly_stop_with_the_agents_stops_them_within_its_limit(
    hub: FakeHub, idle_broker: BrokerProcess
) -> None:
    await idle_broker.begin(stop_agents_on_exit=True, stop_limit=0.7)
    gentle, deaf = Agent(hub, "gentle"), Agent(hub, "deaf")
    await gentle.create()
    await deaf.create(DEAF, config={"stopGrace": "60s"})
    await deaf.logged("deaf")
    assert await idle_broker.stop() == 0
    assert (await gentle.status(phase="stopped"))["detail"] == {"exitCode": 143}
    await idle_broker.begin()
    states = {one["slug"]: one["phase"] for one in (await hub.beat(1))["agentStates"]}
    assert states == {"gentle": "stopped", "deaf": "stopped"}


async def test_connect_says_who_this_is(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    await idle_broker.begin(version="9.9", window=7)
    connect = hub.newest.connect
    assert {name: connect[name] for name in ("type", "brokerId", "version", "window")} == {
        "type": "connect", "brokerId": BROKER_ID, "version": "9.9", "window": 7,
    }  # fmt: skip
    [headers] = hub.upgrades
    assert headers["X-Scion-Broker-ID"] == BROKER_ID
    assert len(base64.urlsafe_b64decode(headers["X-Scion-Nonce"])) == 16


async def test_broker_reports_its_agents_right_after_connected(hub: FakeHub, broker: BrokerProcess) -> None:
    assert hub.newest.connect["capabilities"] == [
        "dedupe", "epoch", "window", "batch", "reconnect", "progress", "cancel", "suspend",
    ]  # fmt: skip
    agent = Agent(hub)
    await agent.create()
    await broker.again()
    told = await hub.beat(1)
    assert next(frame for n, frame in hub.frames if n == 1)["payload"] is told, "before anything else"
    assert told["activeAgents"] == 1
    [state] = told["agentStates"]
    assert (state["agentId"], state["runId"], state["phase"]) == (agent.id, agent.runs[0], "running")


async def test_a_broker_may_live_in_the_process_of_another_program(hub: FakeHub, tmp_path: Path) -> None:
    identity = Identity(broker_id=BROKER_ID, secret=base64.b64encode(SECRET).decode())
    save_identity(tmp_path / "b", identity)
    settings = BrokerSettings(dir=tmp_path / "b", hubs=(hub.url,), stop_agents_on_exit=True)
    agent = Agent(hub)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_broker, settings)
        await hub.line()
        assert (await agent.create()).status == 201
        assert (await agent.message("hello")).status == 200
        tasks.cancel_scope.cancel()
    assert processes_with(agent.runs[0]) == []
    assert (await agent.status(phase="stopped"))["runId"] == agent.runs[0]
    with anyio.fail_after(20):
        while not hub.closed:
            await anyio.sleep(0.01)
    assert hub.closed[0][1] == 1000
