"""Frames of every wrong kind: answered, counted, and harmless; ten a minute close the socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.wire.rawsocket import hello, raw_socket

if TYPE_CHECKING:
    from tests.harness.hubclient import HubClient
    from tests.harness.hubprocess import HubProcess
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio

BAD: dict[str, Any] = {
    "no JSON": "{not json",
    "empty": "",
    "a number": "12",
    "null": "null",
    "a text": '"ping"',
    "no type": "{}",
    "a type that is no text": '{"type": 7}',
    "an unknown type": '{"type": "teleport"}',
    "an array without batch": '[{"type": "ping"}]',
    "a response without requestId": '{"type": "response", "statusCode": 200}',
    "a response without statusCode": '{"type": "response", "requestId": "r"}',
    "a response with a text for statusCode": '{"type": "response", "requestId": "r", "statusCode": "ok"}',
    "an event without a name": '{"type": "event", "payload": {}}',
    "binary": b'{"type": "ping"}',
    "binary noise": bytes(range(256)),
    "deep nesting": "[" * 20_000,
    "broken unicode": '{"type": "\\ud800"}',
    "not a number": '{"type": "ping", "timestamp": NaN}',
}
FINE: dict[str, Any] = {
    "unknown fields": {"type": "ping", "timestamp": 1, "more": {"deep": [1]}},
    "an unused field of a wrong type": {"type": "response", "requestId": "unknown", "statusCode": 200, "headers": 7},
    "null for absent": {"type": "response", "requestId": "unknown", "statusCode": 204, "body": None, "headers": None},
    "an answer to nothing": {"type": "response", "requestId": "never asked", "statusCode": 200, "body": ""},
    "an unknown event": {"type": "event", "event": "sunrise", "payload": {}},
    "an event of an unknown agent": {"type": "event", "event": "agent_status", "payload": {"agentId": "nobody"}},
    "a heartbeat with odd members": {"type": "event", "event": "heartbeat", "payload": {"activeAgents": "many"}},
    "an error": {"type": "error", "code": "internal_error", "message": "so sorry"},
    "accepted of nothing": {"type": "accepted", "requestId": "never asked"},
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_frame_is_answered_and_the_socket_stays(hub: HubProcess, api: HubClient, kind: str) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet()
        await socket.say(BAD[kind])
        told = await socket.hear_type("error")
        assert told["code"] == "invalid_message"
        assert told["message"]
        await socket.still_serves()


@pytest.mark.parametrize("kind", FINE)
async def test_what_is_not_understood_and_not_needed_is_no_fault(hub: HubProcess, api: HubClient, kind: str) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet()
        for _ in range(12):
            await socket.say(FINE[kind])
        await socket.still_serves()


async def test_ten_bad_frames_a_minute_close_the_socket(hub: HubProcess, api: HubClient) -> None:
    identity = await api.register_broker()
    async with raw_socket(hub.url, identity) as socket:
        await socket.greet()
        for _ in range(10):
            await socket.say("{not json")
        assert await socket.end() == 4400
    async with raw_socket(hub.url, identity) as again:
        await again.greet()
        await again.still_serves()


async def test_nine_bad_frames_do_not(hub: HubProcess, api: HubClient) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet()
        for _ in range(9):
            await socket.say("{not json")
        await socket.still_serves()


async def test_a_batch_is_read_from_a_broker_that_announced_it(hub: HubProcess, api: HubClient) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet(capabilities=["batch"])
        await socket.say([{"type": "ping", "timestamp": 1}, {"type": "ping", "timestamp": 2}])
        frames: list[Any] = []
        while len(frames) < 2:
            told = await socket.hear()
            frames += told if isinstance(told, list) else [told]
        assert [frame["type"] for frame in frames] == ["pong", "pong"]


async def test_a_bad_member_of_a_batch_spoils_only_itself(hub: HubProcess, api: HubClient) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet(capabilities=["batch"])
        await socket.say([{"type": "teleport"}, {"type": "ping", "timestamp": 2}])
        frames: list[Any] = []
        while len(frames) < 2:
            told = await socket.hear()
            frames += told if isinstance(told, list) else [told]
        assert sorted(frame["type"] for frame in frames) == ["error", "pong"]


async def test_a_frame_over_the_limit_closes_with_1009(hub: HubProcess, api: HubClient) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet()
        await socket.say({"type": "event", "event": "agent_output", "payload": {"data": "x" * (1 << 20)}})
        assert await socket.end() == 1009


async def test_a_frame_just_below_the_limit_is_read(hub: HubProcess, api: HubClient) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet()
        frame = {"type": "event", "event": "agent_output", "payload": {"data": ""}}
        frame["payload"]["data"] = "x" * ((1 << 20) - len(json.dumps(frame)) - 16)  # type: ignore[index]
        await socket.say(frame)
        await socket.still_serves()


async def test_a_truncated_websocket_frame_ends_only_its_socket(hub: HubProcess, api: HubClient) -> None:
    identity = await api.register_broker()
    async with raw_socket(hub.url, identity) as socket:
        await socket.greet()
        socket.ws.transport.write(b"\x81\xfe\x10\x00mask")
        socket.ws.transport.close()
    await api.broker_is(identity["broker_id"], "offline")
    async with raw_socket(hub.url, identity) as again:
        await again.greet()


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\x81\x05hello", b"GET / HTTP/1.1\r\n\r\n"])
async def test_bytes_that_are_no_websocket_end_only_their_socket(
    hub: HubProcess, api: HubClient, garbage: bytes
) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet()
        socket.ws.transport.write(garbage)
        await socket.end()
    await api.get("/agents")


async def test_connected_is_the_first_frame_and_says_what_holds(hub: HubProcess, api: HubClient) -> None:
    identity = await api.register_broker()
    async with raw_socket(hub.url, identity) as socket:
        told = await socket.greet(capabilities=["window"], window=7)
        assert told["brokerId"] == identity["broker_id"]
        assert told["sessionId"]
        assert isinstance(told["pingIntervalMs"], int)
        assert 1 <= told["pingIntervalMs"] <= 30_000
        assert told["epoch"] == 1
        assert told["nodeId"] == hub.ready["nodeId"]
        assert told["window"] <= 7


@pytest.mark.parametrize(
    "odd",
    [
        {"projects": None}, {"groves": ["g"]}, {"timestamp": "2026-01-01T00:00:00Z"}, {"timestamp": None},
        {"capabilities": None}, {"capabilities": ["telepathy"]}, {"window": None}, {"extra": [1]}, {"version": None},
    ],
)  # fmt: skip
async def test_odd_connect_frames_are_taken(hub: HubProcess, api: HubClient, odd: dict[str, Any]) -> None:
    async with raw_socket(hub.url, await api.register_broker()) as socket:
        await socket.greet(**odd)
        await socket.still_serves()


async def test_no_connect_in_time_closes_with_4408(hub: HubProcess, api: HubClient) -> None:
    identity = await api.register_broker()
    async with raw_socket(hub.url, identity) as socket:
        assert await socket.end() == 4408
    assert (await api.broker(identity["broker_id"]))["status"] == "offline"


async def test_a_connect_for_another_broker_is_not_served(hub: HubProcess, api: HubClient) -> None:
    mine, other = await api.register_broker(), await api.register_broker()
    async with raw_socket(hub.url, mine) as socket:
        await socket.say(hello(other["broker_id"]))
        await socket.end()
    assert (await api.broker(other["broker_id"]))["status"] == "offline"


async def test_a_second_connect_harms_nothing(hub: HubProcess, api: HubClient) -> None:
    identity = await api.register_broker()
    async with raw_socket(hub.url, identity) as socket:
        await socket.greet()
        await socket.say(hello(identity["broker_id"]))
        await socket.still_serves()


async def test_a_window_is_kept(ours: Scene) -> None:
    """Never more requests in flight than the broker asked for."""
    await ours.broker.tell("dial", window=3)
    agents = [await ours.agent() for _ in range(6)]
    await ours.broker.rule(op="message", gate="slow")
    answers = [await ours.api.message(agent["id"], "hello") for agent in agents]
    await ours.broker.seen(what="effect", op="message", times=3)
    assert len(ours.broker.events(what="request", op="message")) == 3
    await ours.broker.release("slow")
    for answer in answers:
        assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    await ours.check()


async def test_a_request_above_the_frame_limit_is_never_sent(ours: Scene) -> None:
    """A body that HTTP takes may be too large for a frame, which carries it in base64."""
    config = {"command": ["true"], "padding": "x" * 900_000}
    answer = await ours.api.post_agent(ours.project, ours.broker_id, config=config)
    assert answer.status in (413, 502)
    assert "payload_too_large" in answer.text
    assert ours.broker.events(what="request") == []
    assert len(ours.broker.events(what="connected")) == 1
    await ours.agent(config={"command": ["true"], "padding": "x" * 300_000})
