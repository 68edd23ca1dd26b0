"""One socket of the scripted broker: dialled and signed, every frame in and out written to the history."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.harness.history import History
from tests.harness.script import Shape
from tests.harness.signing import signed

CONNECT_PATH = "/api/v1/runtime-brokers/connect"
SHOWN = 4096
"""Characters of a frame that the history keeps."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    broker_id: str
    secret: bytes


class NotConnected(Exception):
    """The hub refused the upgrade, or its first frame was not `connected`; `told` is for the history."""

    def __init__(self, **told: Any) -> None:
        super().__init__(str(told))
        self.told = told


@dataclass(eq=False)
class Socket:
    """`n` counts the sockets of one broker directory's process from 1."""

    n: int
    url: str
    ws: ClientConnection
    history: History
    frame_limit: int
    connected: dict[str, Any] = field(default_factory=dict)
    open: bool = True
    last_pong: float = field(default_factory=time.monotonic)

    @property
    def epoch(self) -> int | None:
        epoch = self.connected.get("epoch")
        return epoch if isinstance(epoch, int) else None

    async def send(self, frame: Any) -> bool:
        """Sends one frame (or an array of frames); False when the socket is gone."""
        return await self.send_raw(json.dumps(frame))

    async def send_raw(self, data: str | bytes) -> bool:
        shown = data if isinstance(data, str) else f"{len(data)} bytes"
        self.history.write("out", socket=self.n, frame=shown[:SHOWN], size=len(data))
        try:
            await self.ws.send(data)
        except (ConnectionClosed, OSError) as gone:
            self.history.write("unsent", socket=self.n, why=str(gone))
            return False
        return True

    def send_wire(self, data: bytes) -> None:
        """Bytes straight into the connection, past the WebSocket protocol."""
        self.history.write("wire", socket=self.n, size=len(data))
        self.ws.transport.write(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.history.write("closing", socket=self.n, code=code)
        with anyio.move_on_after(5):
            await self.ws.close(code, reason)

    def abort(self) -> None:
        self.history.write("aborting", socket=self.n)
        self.ws.transport.abort()

    def pause(self) -> None:
        self.ws.transport.pause_reading()

    def resume(self) -> None:
        self.ws.transport.resume_reading()

    async def answer(self, request_id: str, status: int, body: Any, shape: Shape, bare: bool) -> bool:
        frame = response(request_id, status, body, bare)
        size = len(json.dumps(frame))
        if shape == "good" and size > self.frame_limit and not bare:
            too_large = {"error": {"code": "response_too_large", "message": f"{size} bytes"}}
            frame = response(request_id, 413, too_large, bare)
        self.history.write(
            "answer", socket=self.n, requestId=request_id, status=status, body=body, shape=shape, size=size
        )
        return await self.send_raw(misshapen(frame, shape, self.frame_limit))


def response(request_id: str, status: int, body: Any, bare: bool) -> dict[str, Any]:
    """A `response` frame; bare as a stock broker's: no members without content."""
    data = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    frame: dict[str, Any] = {"type": "response", "requestId": request_id, "statusCode": status}
    if data or not bare:
        frame["body"] = base64.b64encode(data).decode()
    if not bare:
        frame["headers"] = {"Content-Type": "text/plain" if isinstance(body, str) else "application/json"}
    return frame


def misshapen(frame: dict[str, Any], shape: Shape, limit: int) -> str | bytes:
    """The frame's text, or a faulty one in its place."""
    text = json.dumps(frame)
    match shape:
        case "good":
            return text
        case "not_json":
            return text.replace('"', "'")
        case "binary":
            return text.encode()
        case "oversize":
            return json.dumps({**frame, "padding": "x" * limit})
        case "truncated":
            return text[: len(text) // 2]
        case "no_status":
            return json.dumps({key: value for key, value in frame.items() if key != "statusCode"})
        case "text_status":
            return json.dumps({**frame, "statusCode": "two hundred"})
        case "bad_base64":
            return json.dumps({**frame, "body": "%%% not base64 %%%"})


async def dial(
    n: int, url: str, identity: Identity, hello: dict[str, Any], history: History, limits: tuple[int, int]
) -> Socket:
    """Upgrades, says `connect`, and awaits `connected`. `limits`: bytes a frame to read, and to send.

    Raises: NotConnected; OSError when nobody listens.
    """
    read_limit, send_limit = limits
    history.write("dial", socket=n, url=url)
    headers = signed(identity.broker_id, identity.secret, "GET", CONNECT_PATH)
    try:
        with anyio.fail_after(15):
            ws = await connect(
                f"ws://{urlsplit(url).netloc}{CONNECT_PATH}",
                additional_headers=headers,
                max_size=read_limit,
                max_queue=None,
                ping_interval=None,
                compression=None,
                proxy=None,
            )
    except InvalidStatus as refused:
        raise NotConnected(**_refusal(refused)) from refused
    except (InvalidHandshake, TimeoutError, EOFError) as failed:
        raise NotConnected(status=None, why=repr(failed)) from failed
    socket = Socket(n, url, ws, history, send_limit)
    await socket.send(hello)
    await _await_connected(socket)
    return socket


def _refusal(refused: InvalidStatus) -> dict[str, Any]:
    text = (refused.response.body or b"").decode(errors="replace")
    headers = {name.lower(): value for name, value in refused.response.headers.raw_items()}
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    return {"status": refused.response.status_code, "body": body, "headers": headers}


async def _await_connected(socket: Socket) -> None:
    """A stock broker gives up on any other first frame, and so does this one."""
    try:
        with anyio.fail_after(30):
            text = await socket.ws.recv()
    except (ConnectionClosed, TimeoutError) as failed:
        raise NotConnected(status=None, why=repr(failed), code=socket.ws.close_code) from failed
    frame = json.loads(text)
    if not isinstance(frame, dict) or frame.get("type") != "connected":
        await socket.close(1002)
        raise NotConnected(status=None, why=f"first frame is {str(text)[:200]}")
    socket.connected = frame
    socket.history.write("connected", socket=socket.n, epoch=socket.epoch, frame=frame)
