"""Requests that no client library would send: bytes over a socket, and upgrades with chosen headers."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio

from tests.harness.processes import PATIENCE
from tests.harness.sockets import CONNECT_PATH


@dataclass(frozen=True, kw_only=True)
class RawAnswer:
    """`status` is None when the hub closed the connection without an answer."""

    status: int | None
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


async def exchange(url: str, *parts: bytes, patience: float = PATIENCE) -> RawAnswer:
    """Sends the parts, as far as the hub reads them, and gives its answer. Raises: TimeoutError."""
    host, _, port = urlsplit(url).netloc.partition(":")
    with anyio.fail_after(patience):
        stream = await anyio.connect_tcp(host, int(port))
        async with stream:
            received = bytearray()

            async def send() -> None:
                for part in parts:
                    try:
                        await stream.send(part)
                    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                        return

            async with anyio.create_task_group() as sending:
                sending.start_soon(send)
                while not _whole(received):
                    try:
                        received += await stream.receive(65_536)
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        break
                sending.cancel_scope.cancel()
    return _read(bytes(received))


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of a request; `Content-Length` is added unless given."""
    sent = {"Host": "hub", "Connection": "close", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def upgrade(url: str, headers: Mapping[str, str], *, path: str = CONNECT_PATH, query: str = "") -> RawAnswer:
    """A WebSocket upgrade; 101 is an answer like any other, and the connection is closed after it."""
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    }
    target = f"{path}?{query}" if query else path
    head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "hub", **handshake, **headers}.items())
    return await exchange(url, f"GET {target} HTTP/1.1\r\n{head}\r\n".encode())


def _whole(received: bytearray) -> bool:
    head, found, body = bytes(received).partition(b"\r\n\r\n")
    if not found:
        return False
    if head.split(b" ", 2)[1:2] == [b"101"]:
        return True
    lengths = [line.split(b":", 1)[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0])


def _read(received: bytes) -> RawAnswer:
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return RawAnswer(status=None, headers={}, body=received)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return RawAnswer(status=int(first.split(" ")[1]), headers=headers, body=body)
