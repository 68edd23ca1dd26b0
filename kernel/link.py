"""One session of one broker on this node: its socket, its epoch, the requests in flight."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Protocol

import anyio

from kernel import wire
from kernel.broker import Broker, Session
from kernel.clock import Clock, Instant
from kernel.errors import LinkLost, PayloadTooLarge
from kernel.intent import IntentId
from kernel.latch import Latch
from kernel.storage import Released, SessionClaimed
from kernel.window import Window

log = logging.getLogger(__name__)

QUEUE_FRAMES = 256
QUEUE_BYTES = 8 * 1024 * 1024


class Closed(Exception):
    """The socket is gone; `code` is its close code, 1006 when there was none."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"closed with {code}")


class Socket(Protocol):
    """What a link needs of a WebSocket, whatever server holds it."""

    async def receive(self) -> str | bytes:
        """Raises: Closed."""
        ...

    async def send(self, text: str) -> None:
        """Raises: Closed."""
        ...

    async def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None:
        """Drop the transport at once: frees whoever waits in `send`."""
        ...

    def heard_at(self) -> float:
        """Monotonic time of the last byte read."""
        ...


class ChannelSettings(Protocol):
    """The part of the settings that a link reads."""

    @property
    def ping(self) -> float: ...
    @property
    def dead_after(self) -> float: ...
    @property
    def stock_window(self) -> int: ...
    @property
    def stock_frame_limit(self) -> int: ...
    @property
    def renew(self) -> float: ...
    @property
    def send_deadline(self) -> float: ...
    @property
    def handshake(self) -> float: ...
    @property
    def frame_limit(self) -> int: ...


class Listener(Protocol):
    """Who is told of what happens on a link. Nothing of it may block: it notes, and a task does the rest."""

    def arrived(self, link: Link, claimed: SessionClaimed) -> None: ...

    def left(self, link: Link, released: Released) -> None: ...

    async def events(self, link: Link, event: wire.Event) -> None:
        """Awaited in the link's own task for events, one at a time, in the order of arrival."""
        ...

    def accepted(self, intent_id: str) -> None:
        """The broker says that it took this request and that work begins."""
        ...


class Exchange:
    """One request in flight: its frame, and the answer that it gets."""

    def __init__(self, intent_id: str, asked: float) -> None:
        self.intent_id = intent_id
        self.request_id = ""
        self.queued = 0.0
        """Seconds until its frame was on the socket."""
        self._asked = asked
        self.sent = Latch()
        self.sent_at: Instant | None = None
        self.accepted_at: Instant | None = None
        self.response: wire.Response | None = None
        self._over = Latch()

    def left(self, clock: Clock) -> None:
        """Its frame is on the socket, or its answer says that it was."""
        if not self.sent.is_set():
            self.sent_at = clock.now()
            self.queued = clock.monotonic() - self._asked
            self.sent.set()

    def answer(self, response: wire.Response) -> None:
        if not self._over.is_set():
            self.response = response
            self._over.set()

    def lose(self) -> None:
        self._over.set()

    async def result(self) -> wire.Response:
        """Raises: LinkLost. Without a limit of its own: what was sent ends with the answer, or with the link."""
        await self._over.wait()
        if self.response is None:
            raise LinkLost()
        return self.response


class Link:
    """One session of one broker on this node."""

    closing: tuple[int, str] | None = None
    quiet = False
    """Nothing new is sent: the hub stops."""
    advised = False
    """The broker was told to dial another hub."""
    doubted = False
    """The rows may tell less of this session, or more, than is true: they are looked at before the next claim."""
    in_hand = 0
    """How many works wait for a place in the window, hold one, or write their end: the first of each lane."""
    late_answers = 0
    _open = True
    _outgoing_bytes = 0

    def __init__(
        self,
        *,
        socket: Socket,
        broker: Broker,
        session: Session,
        secret: bytes,
        settings: ChannelSettings,
        window: int,
        clock: Clock,
    ) -> None:
        self.socket = socket
        self.broker = broker
        self.session = session
        self.capabilities = _named(tuple(broker.capabilities))
        self.stock = not self.capabilities
        self.window = Window(_window_of(broker, settings, window))
        self.renewed_at = clock.monotonic()
        self.paused = broker.paused
        """Nothing new is sent: somebody put the broker on pause."""
        self._secret = secret
        self._settings = settings
        self._clock = clock
        self._outgoing: list[tuple[str, Exchange | None]] = []
        self._outgoing_arrived = Latch()
        self._exchanges: dict[str, Exchange] = {}
        self._hangup = Latch()
        self.on_work: Callable[[Link], None] = lambda _: None
        """Called when something may be claimed for this broker."""

    @property
    def open(self) -> bool:
        """Whether requests may be put into it."""
        return self._open and self.closing is None and not self.quiet

    @property
    def settled(self) -> bool:
        """Nothing is in flight, and nothing's end is still to be written."""
        return not self._exchanges and not self.in_hand

    @property
    def frame_limit(self) -> int:
        return self._settings.stock_frame_limit if self.stock else self._settings.frame_limit

    def can(self, capability: str) -> bool:
        return capability in self.capabilities

    def wake(self) -> None:
        self.on_work(self)

    def doubt(self) -> None:
        """A commit was undone, or an answer lost: have the rows of this session looked at."""
        self.doubted = True
        self.wake()

    # -- requests ----------------------------------------------------------------------------------------------

    def request(self, intent_id: str, call: wire.Call, headers: dict[str, str]) -> Exchange:
        """Put one signed request into the tunnel.

        Raises: LinkLost when the link is closing; PayloadTooLarge when the frame is more than the broker takes.
        """
        if not self.open:
            raise LinkLost()
        exchange = Exchange(intent_id, self._clock.monotonic())
        frame = self._frame(call, headers)
        text = wire.encode(frame)
        if len(text.encode()) > self.frame_limit:
            raise PayloadTooLarge(
                f"the request needs a frame of {len(text.encode())} bytes; this broker takes {self.frame_limit}"
            )
        exchange.request_id = frame.request_id
        self._exchanges[frame.request_id] = exchange
        self._put(text, exchange)
        return exchange

    def forget(self, exchange: Exchange) -> None:
        """Nobody waits for its answer any more: when it comes it is counted and dropped."""
        self._exchanges.pop(exchange.request_id, None)

    def greet(self) -> None:
        """`connected`: always the first frame."""
        connected = wire.Connected(
            broker_id=self.session.broker_id,
            session_id=self.session.session_id,
            ping_interval_ms=min(30_000, max(1, int(self._settings.ping * 1000))),
            epoch=self.session.epoch,
            node_id=self.session.node_id,
            window=self.window.size,
        )
        self._put(wire.encode(connected), None)

    def _frame(self, call: wire.Call, headers: dict[str, str]) -> wire.Request:
        signed = wire.signed_headers(
            self.session.broker_id,
            self._secret,
            call.method,
            call.path,
            call.query,
            call.body,
            now=self._clock.now() // 1_000_000,
        )
        return wire.Request.of(self._clock.uuid4(), call, {**headers, **signed})

    def cancel(self, intent_id: str) -> None:
        """Ask the broker to stop what it was sent, if it knows how."""
        if not self.can(wire.CANCEL):
            return
        for exchange in list(self._exchanges.values()):
            if exchange.intent_id == intent_id and self._open:
                self._put(wire.encode(wire.Cancel(request_id=exchange.request_id, dispatch_id=intent_id)), None)

    def advise(self, after: float, deadline: float) -> None:
        """Ask the broker to dial another hub in `after` seconds; in `deadline` seconds this socket is closed anyway."""
        self.advised = True
        self._put(wire.encode(wire.Reconnect(after_ms=int(after * 1000), deadline_ms=int(deadline * 1000))), None)

    def sent(self) -> list[IntentId]:
        """The intents whose frame has left and whose answer has not come."""
        return [IntentId(one.intent_id) for one in self._exchanges.values() if one.sent.is_set() and one.intent_id]

    def _put(self, text: str, exchange: Exchange | None) -> None:
        self._outgoing.append((text, exchange))
        self._outgoing_bytes += len(text)
        if len(self._outgoing) > QUEUE_FRAMES or self._outgoing_bytes > QUEUE_BYTES:
            log.warning("broker %s reads too slowly: its socket is dropped", self.session.broker_id)
            self.hang_up(1011, "queue_full")
        self._outgoing_arrived.set()

    # -- the tasks of a socket -----------------------------------------------------------------------------------

    def hang_up(self, code: int, reason: str) -> None:
        """Close soon, from the link's own task. The first reason counts."""
        if self.closing is None:
            self.closing = (code, reason)
            self._hangup.set()

    async def write(self) -> None:
        """The one writer of this socket, until it is gone: the reader alone learns how. A send that takes too long
        aborts the transport."""
        with suppress(Closed):
            while True:
                await self._outgoing_arrived.wait()
                self._outgoing_arrived = Latch()
                while self._outgoing:
                    await self._send(self._take())

    def _take(self) -> list[tuple[str, Exchange | None]]:
        """What goes out in one frame: everything that waits, for a broker that takes arrays, within its limit."""
        first = self._outgoing.pop(0)
        taken = [first]
        size = len(first[0].encode()) + 2
        while self.can(wire.BATCH) and self._outgoing:
            more = len(self._outgoing[0][0].encode()) + 1
            if size + more > self.frame_limit:
                break
            size += more
            taken.append(self._outgoing.pop(0))
        self._outgoing_bytes -= sum(len(text) for text, _ in taken)
        return taken

    async def _send(self, taken: list[tuple[str, Exchange | None]]) -> None:
        texts = [text for text, _ in taken]
        with anyio.move_on_after(self._settings.send_deadline) as scope:
            await self.socket.send(texts[0] if len(texts) == 1 else "[" + ",".join(texts) + "]")
        if scope.cancelled_caught:
            log.warning("broker %s takes nothing: its socket is dropped", self.session.broker_id)
            self.hang_up(1011, "send_deadline")
            self.socket.abort()
            return
        for _, exchange in taken:
            if exchange:
                exchange.left(self._clock)

    async def watch(self) -> None:
        """Close when told to, and when the peer was silent for too long."""
        while self.closing is None:
            silent = self._clock.monotonic() - self.socket.heard_at()
            if silent >= self._settings.dead_after:
                self.hang_up(1011, "no_pong")
                break
            with anyio.move_on_after(self._settings.dead_after - silent):
                await self._hangup.wait()
        code, reason = self.closing or (1011, "no_pong")
        with anyio.move_on_after(1.0), suppress(Closed):
            await self.socket.close(code, reason)
        self.socket.abort()

    def take(self, frame: wire.Frame, listener: Listener) -> None:
        """One frame from the broker that is not an event."""
        match frame:
            case wire.Response():
                self._answer(frame)
            case wire.Accepted():
                exchange = self._exchanges.get(frame.request_id)
                if exchange:
                    exchange.left(self._clock)
                    exchange.accepted_at = exchange.accepted_at or self._clock.now()
                    listener.accepted(exchange.intent_id)
            case wire.Ping():
                self._put(wire.encode(wire.Pong()), None)
            case _:
                pass

    def _answer(self, response: wire.Response) -> None:
        exchange = self._exchanges.pop(response.request_id, None)
        if exchange is None:
            self.late_answers += 1
            return
        exchange.left(self._clock)
        exchange.answer(response)

    def complain(self, why: str) -> None:
        """Tell the broker of a bad frame; the socket stays."""
        self._put(wire.encode(wire.Error(code="invalid_message", message=why)), None)

    def lose(self) -> None:
        """The socket is gone: everything in flight is lost, which is no answer. Who waits for work on it is let go."""
        self._open = False
        self.wake()
        for exchange in list(self._exchanges.values()):
            exchange.lose()
        self._exchanges.clear()


@cache
def _named(capabilities: tuple[str, ...]) -> frozenset[str]:
    """One set for all brokers that announce the same."""
    return frozenset(capabilities)


def _window_of(broker: Broker, settings: ChannelSettings, most: int) -> int:
    """Requests in flight: 64 unless the broker asks for less; a stock broker never says."""
    if not broker.capabilities:
        return settings.stock_window
    return max(1, min(broker.window or most, most))
