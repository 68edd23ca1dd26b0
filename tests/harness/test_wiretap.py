"""The wiretap writes down what passed, however it was cut into pieces, and nothing of what is no broker's socket."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from tests.harness.wiretap import Line, Wiretap

ASKED = b"GET /connect HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
REQUEST = {
    "type": "request",
    "requestId": "r1",
    "method": "POST",
    "path": "/api/v1/agents/one/start",
    "query": "",
    "headers": {"X-Dispatch-Id": "d1", "X-Dispatch-Attempt": "2", "X-Dispatch-Epoch": "7"},
    "body": base64.b64encode(b'{"runId": "run-1"}').decode(),
}


def framed(told: Any, *, mask: bool = False) -> bytes:
    return Frame(Opcode.TEXT, json.dumps(told).encode()).serialize(mask=mask)


def talk(line: Line, size: int) -> None:
    up = ASKED + framed({"type": "connect", "brokerId": "b", "lastEpoch": 6}, mask=True)
    up += Frame(Opcode.PING, b"x").serialize(mask=True)
    up += framed({"type": "response", "requestId": "r1", "statusCode": 200, "body": "x" * 70_000}, mask=True)
    down = AGREED + framed({"type": "connected", "epoch": 7}) + framed([REQUEST, {"type": "cancel"}])
    hello = len(ASKED) + 60
    for direction, data in (("up", up[:hello]), ("down", down), ("up", up[hello:])):
        for at in range(0, len(data), size):
            line.heard(direction, data[at : at + size])  # type: ignore[arg-type]
    line.over()


@pytest.mark.parametrize("size", [3, 4096, 1 << 20])
def test_each_frame_is_written_down_once(tmp_path: Path, size: int) -> None:
    tap = Wiretap(tmp_path / "wire.jsonl")
    talk(tap.line(), size)
    tap.close()
    found = tap.of("b")
    assert [event["what"] for event in found] == ["dial", "connected", "request", "answer", "closed"]
    assert {event["socket"] for event in found} == {1}
    request = found[2]
    assert (request["op"], request["agent"], request["dispatch"]) == ("start", "one", "d1")
    assert (request["attempt"], request["epoch"], request["json"]) == (2, 7, {"runId": "run-1"})
    assert (found[3]["requestId"], found[3]["status"]) == ("r1", 200)


def test_what_is_no_socket_is_let_pass(tmp_path: Path) -> None:
    tap = Wiretap(tmp_path / "wire.jsonl")
    plain, refused = tap.line(), tap.line()
    plain.heard("up", b"POST /heartbeat HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    refused.heard("up", ASKED)
    refused.heard("down", b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}")
    plain.over()
    refused.over()
    tap.close()
    assert (tmp_path / "wire.jsonl").read_text() == ""
