"""A scripted hub: takes sockets, signs and sends requests, and keeps all that the broker says."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import anyio
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tests.harness.processes import eventually
from tests.harness.signing import Asked, signature, signed

BROKER_ID = "0198c0de-0000-7000-8000-00000000b0b0"
SECRET = bytes(range(32))
PROJECT = "0198c0de-0000-7000-8000-0000000000aa"

Frame = dict[str, Any]


@dataclass(kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    socket: int

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class Line:
    """One socket of the broker."""

    def __init__(self, n: int, ws: ServerConnection, epoch: int) -> None:
        self.n = n
        self.ws = ws
        self.epoch = epoch
        self.connect: Frame = {}
        self.open = True


@dataclass(kw_only=True)
class FakeHub:
    """`refuse` answers upgrades; `greets` False keeps `connected` back."""

    lines: list[Line] = field(default_factory=list)
    frames: list[tuple[int, Frame]] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    upgrades: list[dict[str, str]] = field(default_factory=list)
    closed: list[tuple[int, int, str]] = field(default_factory=list)
    refuse: Callable[[], tuple[int, dict[str, str], Any] | None] = lambda: None
    first: list[Frame] = field(default_factory=list)
    """Sent instead of `connected` on the next socket."""
    epoch: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- sockets -----------------------------------------------------------------------------------------------------

    def upgrade(self, ws: ServerConnection, request: Request) -> Response | None:
        headers = dict(request.headers.raw_items())
        self.upgrades.append(headers)
        if told := self.refuse():
            status, more, body = told
            return Response(status, HTTPStatus(status).phrase, Headers(more), json.dumps(body).encode())
        known = {name.lower(): value for name, value in headers.items()}
        asked = Asked(method="GET", path=request.path, headers=headers)
        if known.get("x-scion-signature") != signature(SECRET, asked):
            return Response(401, "Unauthorized", Headers(), b'{"error":{"code":"invalid_signature","message":"no"}}')
        return None

    async def serve(self, ws: ServerConnection) -> None:
        self.epoch += 1
        line = Line(len(self.lines), ws, self.epoch)
        try:
            line.connect = json.loads(await ws.recv())
            if self.first:
                await ws.send(json.dumps(self.first.pop(0)))
            else:
                connected = {"type": "connected", "brokerId": BROKER_ID, "sessionId": str(uuid.uuid4())}
                more = {"pingIntervalMs": 10_000, "epoch": line.epoch, "nodeId": "n", "window": 64, "new": {"field": 1}}
                await ws.send(json.dumps({**connected, **more}))
                self.lines.append(line)
            async for text in ws:
                told = json.loads(text)
                for frame in told if isinstance(told, list) else [told]:
                    self.take(line, frame)
        except ConnectionClosed:
            pass
        line.open = False
        self.closed.append((line.n, ws.close_code or 1006, ws.close_reason or ""))

    def take(self, line: Line, frame: Frame) -> None:
        self.frames.append((line.n, frame))
        if frame["type"] == "response":
            self.answers[frame["requestId"]] = Answer(
                status=frame["statusCode"],
                headers=frame.get("headers", {}),
                body=base64.b64decode(frame.get("body", ""), validate=True),
                socket=line.n,
            )
        elif frame["type"] == "accepted":
            self.accepted.append(frame["requestId"])

    async def line(self, n: int = 0) -> Line:
        """The n-th socket that came (negative: from the newest), once it is there."""

        async def there() -> bool:
            return len(self.lines) > n if n >= 0 else bool(self.lines)

        await eventually(there, f"socket {n} of the broker", every=0.01)
        return self.lines[n]

    @property
    def newest(self) -> Line:
        return self.lines[-1]

    # -- requests ----------------------------------------------------------------------------------------------------

    def frame(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        dispatch: str | None = None,
        agent: str | None = None,
        epoch: int | None = None,
        timeout: int | None = 60_000,
        headers: dict[str, str] | None = None,
    ) -> Frame:
        raw = b"" if body is None else json.dumps(body).encode()
        asked = urlencode({"projectId": PROJECT, "groveId": PROJECT, **(query or {})})
        sent: dict[str, str] = {
            "X-Dispatch-Id": dispatch or str(uuid.uuid4()),
            "X-Dispatch-Attempt": "1",
            "X-Dispatch-Epoch": str(self.newest.epoch if epoch is None else epoch),
            **({"X-Dispatch-Timeout-Ms": str(timeout)} if timeout is not None else {}),
            **({"X-Agent-Id": agent} if agent else {}),
            **signed(BROKER_ID, SECRET, method, path, query=asked, body=raw),
            **(headers or {}),
        }
        return {
            "type": "request",
            "requestId": str(uuid.uuid4()),
            "method": method,
            "path": path,
            "query": asked,
            "headers": sent,
            **({"body": base64.b64encode(raw).decode()} if raw else {}),
        }

    async def send(self, *frames: Frame, line: Line | None = None) -> None:
        text = json.dumps(frames[0] if len(frames) == 1 else list(frames))
        await (line or self.newest).ws.send(text)

    async def answer(self, request_id: str) -> Answer:
        async def there() -> Answer | None:
            return self.answers.get(request_id)

        return await eventually(there, f"answer to {request_id}", every=0.005)

    async def ask(self, method: str, path: str, body: Any = None, *, line: Line | None = None, **more: Any) -> Answer:
        frame = self.frame(method, path, body, **more)
        await self.send(frame, line=line)
        return await self.answer(frame["requestId"])

    async def begun(self, frame: Frame) -> None:
        """Until the broker says that it works at this request."""

        async def there() -> bool:
            return frame["requestId"] in self.accepted

        await eventually(there, f"the beginning of {frame['method']} {frame['path']}", every=0.005)

    async def beat(self, n: int) -> Frame:
        """The first heartbeat on the n-th socket."""

        async def there() -> Frame | None:
            return next(
                (frame["payload"] for m, frame in self.frames if m == n and frame.get("event") == "heartbeat"), None
            )

        return await eventually(there, f"heartbeat on socket {n}", every=0.01)

    # -- what was said -----------------------------------------------------------------------------------------------

    def events(self, kind: str, **wanted: Any) -> list[Frame]:
        """Payloads of this kind of event with these members, oldest first."""
        told = [frame["payload"] for _, frame in self.frames if frame["type"] == "event" and frame["event"] == kind]
        return [one for one in told if all(one.get(name) == value for name, value in wanted.items())]

    async def event(self, kind: str, **wanted: Any) -> Frame:
        async def there() -> Frame | None:
            found = self.events(kind, **wanted)
            return found[-1] if found else None

        return await eventually(there, f"event {kind} with {wanted}", every=0.01)


@asynccontextmanager
async def fake_hub(port: int = 0) -> AsyncIterator[FakeHub]:
    hub = FakeHub()
    server: Server
    limits: dict[str, Any] = {"compression": None, "max_size": 1024 * 1024, "close_timeout": 1}
    async with serve(hub.serve, "127.0.0.1", port, process_request=hub.upgrade, **limits) as server:
        hub.port = next(iter(server.sockets)).getsockname()[1]
        yield hub
        for line in hub.lines:
            line.ws.transport.abort()
        with anyio.move_on_after(1):
            server.close()
