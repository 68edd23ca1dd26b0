"""Callers that keep their connection and wait for each answer before they ask again, over the least HTTP that works."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import cast

import anyio
import msgspec

ANSWER_WITHIN = 30.0


class Timed(msgspec.Struct, frozen=True):
    """One call, on the clock that all processes of a machine share."""

    dispatch: str
    asked_at: float
    answered_at: float

    @property
    def seconds(self) -> float:
        return self.answered_at - self.asked_at


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """What one closed loop saw."""

    timed: list[Timed]
    statuses: dict[int, int]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.timed) / self.seconds

    @property
    def times(self) -> list[float]:
        return [one.seconds for one in self.timed]


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time; answers carry their Content-Length."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no class of asyncio's

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError("the hub closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = header(head, b"content-length")
        if len(rest) >= int(length or 0) and self._answer:
            self._received = b""
            self._answer.set_result((int(head[9:12]), head))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and head. Raises: ConnectionError."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


def header(head: bytes, name: bytes) -> bytes:
    """Its value, empty when there is none; `name` in lower case."""
    lower = head.lower()
    at = lower.find(b"\r\n" + name + b":")
    if at < 0:
        return b""
    start = at + len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : len(head) if end < 0 else end].strip()


def request(path: str, token: str, body: bytes = b"", *more: str, method: str = "POST") -> bytes:
    """Ready to be written."""
    lines = [f"{method} {path} HTTP/1.1", "Host: hub", f"Authorization: Bearer {token}", *more]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def closed_loop(address: tuple[str, int], requests: Sequence[bytes], seconds: float, most: int = 0) -> Calls:
    """One caller for each of `requests`, each again and again for so long, or at most so often."""
    timed: list[Timed] = []
    statuses: Counter[int] = Counter()
    loop = asyncio.get_running_loop()
    connections = [(await loop.create_connection(Connection, *address))[1] for _ in requests]
    started = time.monotonic()

    async def call(connection: Connection, asked: bytes) -> None:
        while (before := time.monotonic()) < started + seconds and not (most and len(timed) >= most):
            status, head = await connection.ask(asked)
            timed.append(Timed(header(head, b"x-dispatch-id").decode(), before, time.monotonic()))
            statuses[status] += 1

    with anyio.fail_after(seconds + ANSWER_WITHIN):
        async with anyio.create_task_group() as tasks:
            for connection, asked in zip(connections, requests, strict=True):
                tasks.start_soon(call, connection, asked)
    spent = time.monotonic() - started
    for connection in connections:
        connection.close()
    return Calls(timed=timed, statuses=dict(statuses), seconds=spent)
