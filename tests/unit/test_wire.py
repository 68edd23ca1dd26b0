"""Frames are read strictly where it matters and leniently where it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernel import wire


def from_broker(value: Any, *, batch: bool = False) -> list[wire.Frame]:
    return list(wire.decode_from_broker(value if isinstance(value, str) else json.dumps(value), batch=batch))


def from_hub(value: Any, *, batch: bool = False) -> list[wire.Frame]:
    return list(wire.decode_from_hub(value if isinstance(value, str) else json.dumps(value), batch=batch))


RESPONSE = {"type": "response", "requestId": "r", "statusCode": 200}

EVERY_FRAME: list[wire.Frame] = [
    wire.Connect(broker_id="b", version="1", capabilities=["dedupe"], window=3, last_epoch=7, instance="i"),
    wire.Connected(broker_id="b", session_id="s", ping_interval_ms=10_000, epoch=4, node_id="n", window=64),
    wire.Request(request_id="r", method="POST", path="/p", query="a=b", headers={"X": "ü"}, body=b"\x00\xff"),
    wire.Response(request_id="r", status_code=201, headers={"Content-Type": "text/plain"}, body="ß".encode()),
    wire.Accepted(request_id="r"),
    wire.Cancel(request_id="r", dispatch_id="d"),
    wire.Event(event="heartbeat", payload={"activeAgents": 2}),
    wire.Reconnect(after_ms=5, deadline_ms=10),
    wire.StreamOpen(stream_id="s", stream_type="pty", slug="a", project_id="p", cols=80, rows=24),
    wire.Stream(stream_id="s", data=b"\x1b[0m"),
    wire.StreamResize(stream_id="s", cols=1, rows=2),
    wire.StreamClose(stream_id="s", reason="gone", code=4404),
    wire.Ping(),
    wire.Pong(),
    wire.Error(code="invalid_message", message="why", request_id="r"),
]


@pytest.mark.parametrize("frame", EVERY_FRAME, ids=lambda frame: type(frame).__name__)
def test_every_frame_comes_back_as_it_went_out_on_a_side_that_takes_it(frame: wire.Frame) -> None:
    text = wire.encode(frame)
    taken = []
    for decode in (wire.decode_from_broker, wire.decode_from_hub):
        try:
            taken += list(decode(text, batch=False))
        except wire.BadFrame:
            continue
    assert taken
    assert all(one == frame for one in taken)


def test_a_frame_is_compact_and_leaves_out_what_is_not_set() -> None:
    assert wire.encode(wire.Cancel(request_id="r")) == '{"type":"cancel","requestId":"r"}'


def test_unknown_fields_and_wrong_types_in_unused_ones_do_no_harm() -> None:
    [frame] = from_broker({"type": "connect", "brokerId": "b", "timestamp": [], "projects": 5, "mood": {"a": [1]}})
    assert frame == wire.Connect(broker_id="b", projects=5)
    assert isinstance(frame, wire.Connect)
    assert frame.project_names == []


def test_null_is_absent() -> None:
    [frame] = from_broker({**RESPONSE, "headers": None, "body": None})
    assert frame == wire.Response(request_id="r", status_code=200)
    [frame] = from_broker({"type": "connect", "brokerId": "b", "capabilities": None, "window": None, "lastEpoch": None})
    assert frame == wire.Connect(broker_id="b")


def test_groves_is_the_old_name_of_projects() -> None:
    [frame] = from_broker({"type": "connect", "brokerId": "b", "groves": ["one", 2]})
    assert isinstance(frame, wire.Connect)
    assert frame.project_names == ["one"]


@pytest.mark.parametrize("headers", [{"retry-after": "3", "X-Many": ["a", "b"]}, {"retry-after": "3"}])
def test_an_answer_is_not_lost_over_a_header_that_is_no_text(headers: Any) -> None:
    [frame] = from_broker({**RESPONSE, "headers": headers})
    assert isinstance(frame, wire.Response)
    assert frame.header("Retry-After") == "3"
    assert frame.headers == {"retry-after": "3"}
    assert from_broker({**RESPONSE, "headers": "none"}) == [wire.Response(request_id="r", status_code=200)]


def test_a_response_body_that_is_no_json_is_no_fault() -> None:
    assert wire.Response(request_id="r", status_code=200, body=b"plain").json() is None
    assert wire.Response(request_id="r", status_code=200, body=b'{"a":1}').json() == {"a": 1}
    assert wire.Response(request_id="r", status_code=204).json() is None
    assert wire.Response(request_id="r", status_code=200, body=b"[" * 100_000).json() is None


BAD: list[tuple[str, Any]] = [
    ("not JSON", "{"),
    ("not JSON", ""),
    ("not JSON", '{"type":"ping"} {}'),
    ("not JSON", '{"type":"ping","a":"\\ud800"}'),
    ("nested too deeply", '{"type":"ping","a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    ("no object", "5"),
    ("no object", '"ping"'),
    ("no object", "null"),
    ("unknown type", {}),
    ("unknown type", {"type": None}),
    ("unknown type", {"type": 5}),
    ("unknown type", {"type": "request", "requestId": "r", "method": "GET", "path": "/"}),
    ("unknown type", {"type": "x" * 10_000}),
    ("array", []),
    ("array", [{"type": "ping"}]),
    ("brokerId", {"type": "connect"}),
    ("brokerId", {"type": "connect", "brokerId": None}),
    ("lastEpoch", {"type": "connect", "brokerId": "b", "lastEpoch": -1}),
    ("lastEpoch", {"type": "connect", "brokerId": "b", "lastEpoch": 2**63}),
    ("capabilities", {"type": "connect", "brokerId": "b", "capabilities": "dedupe"}),
    ("requestId", {"type": "response", "statusCode": 200}),
    ("requestId", {"type": "response", "requestId": 7, "statusCode": 200}),
    ("statusCode", {"type": "response", "requestId": "r"}),
    ("statusCode", {"type": "response", "requestId": "r", "statusCode": "200"}),
    ("statusCode", {"type": "response", "requestId": "r", "statusCode": 0}),
    ("base64", {**RESPONSE, "body": "aGk"}),
    ("base64", {**RESPONSE, "body": "_-__"}),
    ("payload", {"type": "event", "event": "heartbeat", "payload": []}),
]


@pytest.mark.parametrize(("reason", "value"), BAD, ids=lambda part: str(part)[:40])
def test_a_bad_frame_is_refused_with_its_reason(reason: str, value: Any) -> None:
    with pytest.raises(wire.BadFrame, match=reason) as caught:
        from_broker(value)
    assert len(str(caught.value)) < 400


def test_a_binary_frame_is_bad() -> None:
    with pytest.raises(wire.BadFrame, match="binary"):
        list(wire.decode_from_broker(b'{"type":"ping"}', batch=True))


def test_a_batch_gives_its_good_frames_and_then_complains_of_the_bad_one() -> None:
    frames = wire.decode_from_broker(json.dumps([{"type": "ping"}, 7, RESPONSE, {}]), batch=True)
    assert next(frames) == wire.Ping()
    assert next(frames) == wire.Response(request_id="r", status_code=200)
    with pytest.raises(wire.BadFrame, match="no object"):
        next(frames)


def test_a_batch_and_a_single_frame_are_both_taken_where_batch_was_announced() -> None:
    assert from_broker([{"type": "ping"}, {"type": "pong"}], batch=True) == [wire.Ping(), wire.Pong()]
    assert from_broker(' [{"type": "ping"}]', batch=True) == [wire.Ping()]
    assert from_broker({"type": "ping"}, batch=True) == [wire.Ping()]


def test_a_hub_of_another_make_is_understood() -> None:
    [frame] = from_hub({"type": "connected", "brokerId": "b", "sessionId": "s"})
    assert frame == wire.Connected(broker_id="b", session_id="s")


def test_a_request_names_its_headers_in_any_case() -> None:
    sent = {"type": "request", "requestId": "r", "method": "GET", "path": "/", "headers": {"x-dispatch-ID": "d"}}
    [frame] = from_hub(sent)
    assert isinstance(frame, wire.Request)
    assert frame.header(wire.DISPATCH_ID) == "d"
    assert frame.header(wire.DISPATCH_EPOCH) is None
