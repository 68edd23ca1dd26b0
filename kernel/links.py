"""The live sockets to brokers, each with its epoch."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from kernel import wire
from kernel.broker import Broker, Session, SessionId
from kernel.clock import Clock, Instant
from kernel.errors import LinkLost, NotFound, PayloadTooLarge, PointsmanError, StorageUnavailable
from kernel.intent import IntentId
from kernel.node import NodeId
from kernel.storage import Changed, Released, SessionClaim, SessionClaimed, Sessions
from kernel.window import Window

log = logging.getLogger(__name__)

QUEUE_FRAMES = 256
QUEUE_BYTES = 8 * 1024 * 1024
BAD_FRAMES_A_MINUTE = 10
MOST_EVENTS = 1_000
"""Events of one broker that wait to be applied; heartbeats repeat what a dropped one said."""
ALTERNATIONS_A_MINUTE = 3
"""Claims by turns of two instances, in a minute, that show two processes with one identity."""
HELD_BACK = 64
"""Messages and lifecycle calls in flight to one broker unless it asks for less."""


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

    def __init__(self, intent_id: str) -> None:
        self.intent_id = intent_id
        self.request_id = ""
        self.sent = anyio.Event()
        self.sent_at: Instant | None = None
        self.accepted_at: Instant | None = None
        self.response: wire.Response | None = None
        self.lost = False
        self._over = anyio.Event()

    def left(self, at: Instant) -> None:
        """Its frame is on the socket, or its answer says that it was."""
        if not self.sent.is_set():
            self.sent_at = at
            self.sent.set()

    def answer(self, response: wire.Response) -> None:
        if not self._over.is_set():
            self.response = response
            self._over.set()

    def lose(self) -> None:
        if not self._over.is_set():
            self.lost = True
            self._over.set()

    async def result(self) -> wire.Response:
        """Raises: LinkLost. Without a limit of its own: what was sent ends with the answer, or with the link."""
        await self._over.wait()
        if self.response is None:
            raise LinkLost()
        return self.response


class Link:
    """One session of one broker on this node."""

    def __init__(
        self, socket: Socket, broker: Broker, session: Session, secret: bytes, settings: ChannelSettings, clock: Clock
    ) -> None:
        self.socket = socket
        self.broker = broker
        self.session = session
        self.capabilities = frozenset(broker.capabilities)
        self.stock = not self.capabilities
        self.window = Window(_window_of(broker, settings))
        self.renewed_at = clock.monotonic()
        self.closing: tuple[int, str] | None = None
        self._secret = secret
        self._settings = settings
        self._clock = clock
        self._outgoing: deque[tuple[str, Exchange | None]] = deque()
        self._outgoing_bytes = 0
        self._outgoing_arrived = anyio.Event()
        self._exchanges: dict[str, Exchange] = {}
        self._open = True
        self._hangup = anyio.Event()
        self.unknown_responses = 0
        self.work = anyio.Event()
        """Set when something may be claimed for this broker."""
        self.in_hand = 0
        """How many claimed works wait for, or hold, a place in the window."""

    @property
    def open(self) -> bool:
        return self._open and self.closing is None

    @property
    def frame_limit(self) -> int:
        return self._settings.stock_frame_limit if self.stock else self._settings.frame_limit

    def can(self, capability: str) -> bool:
        return capability in self.capabilities

    def wake(self) -> None:
        self.work.set()

    # -- requests ----------------------------------------------------------------------------------------------

    def request(self, intent_id: str, call: wire.Call, headers: dict[str, str]) -> Exchange:
        """Put one signed request into the tunnel.

        Raises: LinkLost when the link is closing; PayloadTooLarge when the frame is more than the broker takes.
        """
        if not self.open:
            raise LinkLost()
        exchange = Exchange(intent_id)
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
            if exchange.intent_id == intent_id and self.open:
                self._put(wire.encode(wire.Cancel(request_id=exchange.request_id, dispatch_id=intent_id)), None)

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
        """The one writer of this socket. A send that takes too long aborts the transport."""
        while True:
            await self._outgoing_arrived.wait()
            self._outgoing_arrived = anyio.Event()
            while self._outgoing:
                await self._send(self._take())

    def _take(self) -> list[tuple[str, Exchange | None]]:
        """What goes out in one frame: everything that waits, for a broker that takes arrays, within its limit."""
        first = self._outgoing.popleft()
        taken = [first]
        size = len(first[0].encode()) + 2
        while self.can(wire.BATCH) and self._outgoing:
            more = len(self._outgoing[0][0].encode()) + 1
            if size + more > self.frame_limit:
                break
            size += more
            taken.append(self._outgoing.popleft())
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
                exchange.left(self._clock.now())

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
        with anyio.move_on_after(1.0):
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
                    exchange.left(self._clock.now())
                    exchange.accepted_at = self._clock.now()
                    listener.accepted(exchange.intent_id)
            case wire.Ping():
                self._put(wire.encode(wire.Pong()), None)
            case _:
                pass

    def _answer(self, response: wire.Response) -> None:
        exchange = self._exchanges.pop(response.request_id, None)
        if exchange is None:
            self.unknown_responses += 1
            return
        exchange.left(self._clock.now())
        exchange.answer(response)

    def complain(self, why: str) -> None:
        """Tell the broker of a bad frame; the socket stays."""
        self._put(wire.encode(wire.Error(code="invalid_message", message=why)), None)

    def lose(self) -> None:
        """The socket is gone: everything in flight is lost, which is no answer."""
        self._open = False
        for exchange in list(self._exchanges.values()):
            exchange.lose()
        self._exchanges.clear()


def _window_of(broker: Broker, settings: ChannelSettings) -> int:
    if not broker.capabilities:
        return settings.stock_window
    return max(1, min(broker.window or HELD_BACK, HELD_BACK))


class Turns:
    """Notices two processes with one identity: instances that claim by turns."""

    def __init__(self) -> None:
        self._claims: deque[tuple[float, str]] = deque(maxlen=2 * ALTERNATIONS_A_MINUTE + 2)

    def claim(self, now: float, instance: str | None) -> bool:
        """Note a claim; True when two instances alternated three times within a minute."""
        if instance is None:
            return False
        if not self._claims or self._claims[-1][1] != instance:
            self._claims.append((now, instance))
        recent = [name for at, name in self._claims if now - at < 60.0]
        return len(recent) > ALTERNATIONS_A_MINUTE + 1 and len(set(recent)) < len(recent)


class Links:
    """All links of this node. `serve` is the one task that claims, reads and releases a socket."""

    def __init__(
        self,
        *,
        storage: Sessions,
        node_id: NodeId,
        clock: Clock,
        settings: ChannelSettings,
        tells_conflict: Callable[[Broker], None],
    ) -> None:
        self._storage = storage
        self._node_id = node_id
        self._clock = clock
        self._settings = settings
        self._tells_conflict = tells_conflict
        self._links: dict[str, Link] = {}
        self._turns: dict[str, Turns] = {}
        self._claims: dict[str, deque[float]] = {}
        self.closed: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self.late_ends = 0
        self.listener: Listener
        self.draining = False

    def __len__(self) -> int:
        return len(self._links)

    def all(self) -> list[Link]:
        return list(self._links.values())

    def of(self, broker_id: str) -> Link | None:
        """The broker's live link on this node."""
        link = self._links.get(broker_id)
        return link if link and link.open else None

    def trusted(self, link: Link) -> bool:
        """Its session was renewed within ten seconds: good enough to send without a row."""
        return self._clock.monotonic() - link.renewed_at < 10.0

    def too_often(self, broker: Broker, stock_limit: int, limit: int, within: float) -> bool:
        """Whether the broker claims again and again: more than 5 claims in 10 s, 30 for one that names instances."""
        claims = self._claims.get(broker.id, ())
        recent = sum(1 for at in claims if self._clock.monotonic() - at < within)
        return recent >= (limit if broker.instance else stock_limit)

    # -- a socket's life -----------------------------------------------------------------------------------------

    async def serve(self, socket: Socket, broker_id: str, secret: bytes) -> None:
        """Handshake, claim, serve until the socket is gone, release."""
        connect = await self._handshake(socket, broker_id)
        if connect is None:
            return
        link = await self._claim(socket, broker_id, secret, connect)
        if link is None:
            return
        code = 1006
        try:
            code = await self._run(link)
        finally:
            with anyio.CancelScope(shield=True):
                await self._release(link, code)

    async def _handshake(self, socket: Socket, broker_id: str) -> wire.Connect | None:
        with anyio.move_on_after(self._settings.handshake):
            try:
                return await self._first_connect(socket, broker_id)
            except Closed as gone:
                self.closed[gone.code] += 1
                return None
        await self._refuse(socket, wire.Close.NO_CONNECT, "no_connect")
        return None

    async def _first_connect(self, socket: Socket, broker_id: str) -> wire.Connect:
        bad = 0
        while True:
            try:
                for frame in wire.decode_from_broker(await socket.receive(), batch=False):
                    if isinstance(frame, wire.Connect) and frame.broker_id in (broker_id, ""):
                        return frame
                why = "the first frame must be `connect` with the brokerId that signed the upgrade"
            except wire.BadFrame as fault:
                why = str(fault)
            bad += 1
            if bad >= BAD_FRAMES_A_MINUTE:
                await self._refuse(socket, wire.Close.BAD_FRAMES, "bad_frames")
                raise Closed(wire.Close.BAD_FRAMES)
            await socket.send(wire.encode(wire.Error(code="invalid_message", message=why)))

    async def _refuse(self, socket: Socket, code: int, reason: str) -> None:
        self.closed[code] += 1
        with anyio.move_on_after(1.0):
            await socket.close(code, reason)

    async def _claim(self, socket: Socket, broker_id: str, secret: bytes, connect: wire.Connect) -> Link | None:
        claim = SessionClaim(
            broker_id=broker_id,  # type: ignore[arg-type]
            node_id=self._node_id,
            session_id=SessionId(self._clock.uuid4()),
            last_epoch=connect.last_epoch,
            instance=connect.instance,
            version=connect.version,
            capabilities=tuple(connect.capabilities),
            window=connect.window,
        )
        try:
            claimed = await self._storage.claim_session(claim)
        except NotFound:
            await self._refuse(socket, wire.Close.DELETED, "deleted")
            return None
        except StorageUnavailable:
            await self._refuse(socket, wire.Close.DRAINING, "unavailable")
            return None
        link = Link(socket, claimed.broker, claimed.session, secret, self._settings, self._clock)
        self._take_over(link)
        link.greet()
        self.listener.arrived(link, claimed)
        return link

    def _take_over(self, link: Link) -> None:
        """The newest socket wins: the one that this node had before is closed."""
        broker_id = link.session.broker_id
        now = self._clock.monotonic()
        self._claims.setdefault(broker_id, deque(maxlen=64)).append(now)
        twins = self._turns.setdefault(broker_id, Turns()).claim(now, link.broker.instance)
        if twins:
            self._tells_conflict(link.broker)
        former = self._links.get(broker_id)
        self._links[broker_id] = link
        if former:
            former.hang_up(wire.Close.REPLACED, "other_instance" if twins else "replaced")
            former.lose()

    async def _run(self, link: Link) -> int:
        """Serve the socket until it is gone; answers its close code."""
        code = 1006
        async with anyio.create_task_group() as tasks:
            send, receive = anyio.create_memory_object_stream[wire.Event](MOST_EVENTS)
            tasks.start_soon(self._guard, link.write)
            tasks.start_soon(self._guard, link.watch)
            tasks.start_soon(self._apply, link, receive)
            with send:
                code = await self._read(link, send)
            tasks.cancel_scope.cancel()
        return link.closing[0] if link.closing else code

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """The reader alone learns how the socket closed; for whoever sends it is just gone."""
        with suppress(Closed):
            await task()

    async def _read(self, link: Link, events: MemoryObjectSendStream[wire.Event]) -> int:
        bad: deque[float] = deque(maxlen=BAD_FRAMES_A_MINUTE)
        while True:
            try:
                text = await link.socket.receive()
            except Closed as gone:
                return gone.code
            try:
                for frame in wire.decode_from_broker(text, batch=link.can(wire.BATCH)):
                    self._take(link, frame, events)
            except wire.BadFrame as fault:
                self._bad(link, str(fault), bad)

    def _take(self, link: Link, frame: wire.Frame, events: MemoryObjectSendStream[wire.Event]) -> None:
        if not isinstance(frame, wire.Event):
            link.take(frame, self.listener)
            return
        try:
            events.send_nowait(frame)
        except anyio.WouldBlock:
            log.warning("broker %s sends events faster than they can be stored: one dropped", link.session.broker_id)

    def _bad(self, link: Link, why: str, bad: deque[float]) -> None:
        now = self._clock.monotonic()
        bad.append(now)
        link.complain(why)
        if len(bad) == bad.maxlen and now - bad[0] < 60.0:
            link.hang_up(wire.Close.BAD_FRAMES, "bad_frames")

    async def _apply(self, link: Link, events: MemoryObjectReceiveStream[wire.Event]) -> None:
        with events:
            async for event in events:
                try:
                    await self.listener.events(link, event)
                except PointsmanError as fault:
                    log.warning("event of broker %s not applied: %s", link.session.broker_id, fault)

    async def _release(self, link: Link, code: int) -> None:
        sent = link.sent()
        link.lose()
        if self._links.get(link.session.broker_id) is link:
            del self._links[link.session.broker_id]
        self.closed[code] += 1
        try:
            released = await self._storage.release_session(link.session, code, sent)
        except StorageUnavailable:
            log.warning("session of broker %s not released: the sweep will", link.session.broker_id)
            released = Released(cleared=False, changed=Changed())
        self.listener.left(link, released)

    # -- renewal and stop ----------------------------------------------------------------------------------------

    async def renew(self) -> None:
        """Renew every session whose socket was heard lately; one that the rows no longer name has lost."""
        while True:
            await anyio.sleep(self._settings.renew)
            try:
                await self.renew_once()
            except StorageUnavailable:
                log.warning("sessions not renewed: the database does not answer")

    async def renew_once(self) -> None:
        now = self._clock.monotonic()
        heard = [link for link in self._links.values() if now - link.socket.heard_at() < self._settings.dead_after]
        if not heard:
            return
        lost = set(await self._storage.renew([link.session for link in heard]))
        for link in heard:
            if link.session.session_id in lost:
                link.hang_up(wire.Close.REPLACED, "replaced")
            else:
                link.renewed_at = self._clock.monotonic()

    def hang_up_all(self, code: int, reason: str) -> None:
        for link in list(self._links.values()):
            link.hang_up(code, reason)

    def hang_up(self, broker_id: str, code: int, reason: str) -> None:
        link = self._links.get(broker_id)
        if link:
            link.hang_up(code, reason)
