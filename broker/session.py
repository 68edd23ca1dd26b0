"""One session with a hub: its socket with one reader and one writer, and what it still owes answers to."""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from broker.answer import Answer
from broker.settings import BrokerSettings
from kernel import wire

log = logging.getLogger(__name__)

MOST_FRAMES = 256
MOST_BYTES = 8 * 1024 * 1024
_CLOSING = 2.0


class Served(Protocol):
    """Who serves what comes on a session. Neither may wait."""

    def take(self, asker: Session, request: wire.Request) -> None: ...

    def cancel(self, frame: wire.Cancel) -> None: ...


class Session:
    """From `connected` to the end of the socket. `over` is set at that end, `advised` when the hub wants us to go."""

    def __init__(
        self, socket: ClientConnection, connected: wire.Connected, hub: str, secret: bytes, settings: BrokerSettings
    ) -> None:
        self.connected = connected
        self.hub = hub
        self.broker_id = connected.broker_id
        self.secret = secret
        self.since = anyio.current_time()
        self.over = anyio.Event()
        self.advised = anyio.Event()
        self.advice: wire.Reconnect | None = None
        self.advised_at = 0.0
        self.idle = anyio.Event()
        """Set whenever nothing is owed."""
        self.idle.set()
        self._socket = socket
        self._settings = settings
        self._batches = connected.epoch is not None
        """A hub of our make takes arrays of frames."""
        self._outgoing: deque[str] = deque()
        self._outgoing_bytes = 0
        self._arrived = anyio.Event()
        self._owed: set[str] = set()

    @property
    def stood(self) -> float:
        """Seconds since it was made."""
        return anyio.current_time() - self.since

    @property
    def end(self) -> tuple[int, str]:
        """Close code and reason; 1006 when there was none."""
        return self._socket.close_code or 1006, self._socket.close_reason or ""

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(self, frame: wire.Frame) -> None:
        """Put a frame into the queue. One that does not fit, and all after the end, are dropped."""
        text = wire.encode(frame)
        if self.over.is_set():
            return
        if len(text.encode()) > self._settings.frame_limit:
            log.warning("a frame of %d bytes is too large to be sent: dropped", len(text))
            return
        self._outgoing.append(text)
        self._outgoing_bytes += len(text)
        if (len(self._outgoing) > MOST_FRAMES and not self._batches) or self._outgoing_bytes > MOST_BYTES:
            log.warning("the hub reads too slowly: the socket is dropped")
            self.abort()
        self._arrived.set()

    def answer(self, request: wire.Request, answer: Answer) -> None:
        """An answer whose socket is gone waits in the inbox for the repeat."""
        self.send(
            wire.Response(
                request_id=request.request_id, status_code=answer.status, headers=answer.headers, body=answer.body
            )
        )
        self._owed.discard(request.request_id)
        if not self._owed:
            self.idle.set()

    def accept(self, request: wire.Request) -> None:
        self.send(wire.Accepted(request_id=request.request_id))

    def abort(self) -> None:
        """Drop the transport at once; the reader notices."""
        self._socket.transport.abort()

    async def close(self, code: int = wire.Close.ORDERLY, reason: str = "") -> None:
        """Say what is queued, then good-bye."""
        with anyio.move_on_after(_CLOSING, shield=True):
            while self._outgoing and not self.over.is_set():
                await anyio.sleep(0.01)
            await self._socket.close(code, reason)
            return
        self.abort()

    # -- the tasks ---------------------------------------------------------------------------------------------------

    async def run(self, served: Served) -> None:
        """Read and write until the socket is gone."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write)
                await self._read(served)
                tasks.cancel_scope.cancel()
        finally:
            self.over.set()
            self._owed.clear()
            self.idle.set()

    async def _read(self, served: Served) -> None:
        while True:
            try:
                text = await self._socket.recv()
            except ConnectionClosed:
                return
            try:
                for frame in wire.decode_from_hub(text, batch=True):
                    self._take(frame, served)
            except wire.BadFrame as fault:
                log.warning("a bad frame from the hub: %s", fault)
                self.send(wire.Error(code="invalid_message", message=str(fault)))

    def _take(self, frame: wire.Frame, served: Served) -> None:
        match frame:
            case wire.Request():
                self._owed.add(frame.request_id)
                if self.idle.is_set():
                    self.idle = anyio.Event()
                served.take(self, frame)
            case wire.Cancel():
                served.cancel(frame)
            case wire.Ping():
                self.send(wire.Pong())
            case wire.Reconnect():
                self.advice, self.advised_at = frame, anyio.current_time()
                self.advised.set()
            case wire.Error():
                log.warning("the hub could not use a frame: %s %s", frame.code, frame.message)
            case wire.StreamOpen():
                self.send(wire.StreamClose(stream_id=frame.stream_id, reason="this broker has no streams", code=4404))
            case _:
                pass

    async def _write(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            while self._outgoing:
                texts = self._next()
                with anyio.move_on_after(self._settings.send_deadline) as scope:
                    try:
                        await self._socket.send(texts[0] if len(texts) == 1 else f"[{','.join(texts)}]")
                    except ConnectionClosed:
                        return
                if scope.cancelled_caught:
                    log.warning("the hub takes nothing: the socket is dropped")
                    self.abort()
                    return

    def _next(self) -> list[str]:
        """What goes out in one frame: for a hub of our make all that waits and fits."""
        texts = [self._outgoing.popleft()]
        size = len(texts[0].encode()) + 2
        while self._batches and self._outgoing:
            size += len(self._outgoing[0].encode()) + 1
            if size > self._settings.frame_limit:
                break
            texts.append(self._outgoing.popleft())
        self._outgoing_bytes -= sum(map(len, texts))
        return texts
