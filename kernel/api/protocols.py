"""What we ask of the server's sockets beyond what it gives: limits on a request's head, and how a socket feels.

The one place beside `server.py` that knows uvicorn: the two classes go into its `Config(http=Head, ws=Socket)`.
"""

from __future__ import annotations

import time
from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any, ClassVar

import anyio
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from kernel.api.faults import envelope
from kernel.errors import Failure, HeadersTooLarge

SOCKET = "pointsman.socket"
"""The key under which a WebSocket's scope carries its `Socket`."""
ECHO_DEADLINE = 5.0
"""Seconds in which a peer may answer our close before its transport is dropped."""
LINGER = 5.0
"""Seconds in which a client may go on sending what was refused: closed at once, it would never read the answer."""


class Head(HttpToolsProtocol):
    """Refuses a request head that is too large, or that takes too long."""

    head_limit: ClassVar[int] = 65_536
    head_deadline: ClassVar[float] = 10.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_size = 0
        """Bytes of head that the parser has told of."""
        self._in_head = False
        self._pending = 0
        """Bytes that went into the parser and that it has not told of yet."""
        self._told = 0
        """How often it told of anything."""
        self._head_timer: TimerHandle | None = None
        self._linger_timer: TimerHandle | None = None
        self._refused = False

    # -- transport ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        before = self._told
        self._pending += len(data)
        super().data_received(data)
        if not self._in_head and self._told != before:
            self._pending = 0
        if self._pending > self.head_limit:
            self._refuse(431)

    # -- parser ------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._head_size = 0
        self._in_head = True
        self._told += 1
        if self._head_timer is None:
            self._expect_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._told += 1
        self._stop_timers()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._told += 1
        self._pending -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._told += 1
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(LINGER, self.transport.close)

    def _grow(self, size: int) -> None:
        self._told += 1
        self._pending -= size
        self._head_size += size
        if self._head_size > self.head_limit:
            raise HeadTooLarge

    # -- refusals ----------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Called by the parser's loop for whatever cannot be parsed, our own refusal in a callback included."""
        self._refuse(431 if self._head_size > self.head_limit else 400)

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_deadline, self._head_late)

    def _head_late(self) -> None:
        self._head_timer = None
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._expect_head()
        elif self._head_size:
            self._refuse(408)
        else:
            self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._linger_timer = None

    def _refuse(self, status: int) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_timers()
        body = envelope(_failure(status, self), "")
        lines = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "\r\n",
        )
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER, self.transport.abort)


class HeadTooLarge(Exception):
    """The head is over its limit."""


def _failure(status: int, head: Head) -> Failure:
    match status:
        case 431:
            told = f"the request's head is over {head.head_limit} bytes: send fewer or shorter headers"
            return HeadersTooLarge(told).as_failure()
        case 408:
            told = f"the request's head did not arrive within {head.head_deadline:g} s"
            return Failure(code="invalid_request", message=told, status=408)
        case _:
            return Failure(code="invalid_request", message="this is no HTTP/1.1 request", status=400)


class Socket(WebSocketsSansIOProtocol):
    """Tells when it was last heard, can be dropped at once, and does not take a refusal for a fault."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.heard_at = time.monotonic()
        self._lost = False
        self._missed: anyio.Event | None = None

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost = True
        if self._missed:
            self._missed.set()

    async def lost(self) -> None:
        """Wait until the transport has gone. The event is made when somebody waits: thousands of sockets idle."""
        if not self._lost:
            self._missed = self._missed or anyio.Event()
            await self._missed.wait()

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions[SOCKET] = self
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if self.close_sent and message["type"] == "websocket.send":
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True
        if message["type"] == "websocket.close" and self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(ECHO_DEADLINE, self.abort)

    def abort(self) -> None:
        """Drop the transport at once, with whatever it has not sent."""
        self.stop_keepalive()
        self.transport.abort()

    @property
    def said_goodbye(self) -> bool:
        """The peer sent a close frame: its code is its own and not the server's guess."""
        return self.conn.close_rcvd is not None
