"""The live links of this node. `serve` is the one task that claims, reads and releases a socket."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import anyio
import anyio.abc

from kernel import wire
from kernel.broker import Broker, BrokerId, Kind, SessionId
from kernel.clock import Clock
from kernel.errors import NotFound, Overtaken, PointsmanError, StorageUnavailable
from kernel.link import ChannelSettings, Closed, Link, Listener, Socket
from kernel.node import NodeId
from kernel.storage import Released, SessionClaim, Sessions

log = logging.getLogger(__name__)

BAD_FRAMES_A_MINUTE = 10
MOST_EVENTS = 1_000
"""Events of one broker that wait to be applied; heartbeats repeat what a dropped one said."""
ALTERNATIONS_A_MINUTE = 3
"""Changes from one instance to another, in a minute, that show two processes with one identity."""
POLL = 0.05
"""Seconds between two looks at whether everything is answered, at a stop."""


class Turns:
    """Notices two processes with one identity: instances that claim by turns."""

    __slots__ = ("_claims",)

    def __init__(self) -> None:
        self._claims: list[tuple[float, str]] = []

    def note(self, now: float, instance: str | None) -> None:
        """This process claimed, here or on another node."""
        if instance and (not self._claims or self._claims[-1][1] != instance):
            self._claims = [*self._claims[-2 * ALTERNATIONS_A_MINUTE - 1 :], (now, instance)]

    def twins(self, now: float) -> bool:
        """Whether two instances alternated three times within a minute."""
        recent = [name for at, name in self._claims if now - at < 60.0]
        return len(recent) > ALTERNATIONS_A_MINUTE and len(set(recent)) < len(recent)


class Pace:
    """How many sessions this node took within one second, at its best: it can take as many at least."""

    __slots__ = ("_count", "_second", "best")

    def __init__(self) -> None:
        self._second = 0
        self._count = 0
        self.best = 0

    def note(self, now: float) -> None:
        """A session was claimed."""
        self._count = self._count + 1 if int(now) == self._second else 1
        self._second = int(now)
        self.best = max(self.best, self._count)


class Events:
    """What a broker tells, applied one event at a time in the order of arrival; a task only while some wait."""

    def __init__(self, link: Link, listener: Listener, tasks: anyio.abc.TaskGroup) -> None:
        self._link = link
        self._listener = listener
        self._tasks = tasks
        self._waiting: list[wire.Event] = []
        self._applying = False

    def add(self, event: wire.Event) -> None:
        broker_id = self._link.session.broker_id
        if len(self._waiting) >= MOST_EVENTS:
            log.warning("broker %s sends events faster than they can be stored: one dropped", broker_id)
            return
        self._waiting.append(event)
        if not self._applying:
            self._applying = True
            self._tasks.start_soon(self._apply)

    async def _apply(self) -> None:
        while self._waiting:
            try:
                await self._listener.events(self._link, self._waiting.pop(0))
            except PointsmanError as fault:
                log.warning("event of broker %s not applied: %s", self._link.session.broker_id, fault)
        self._applying = False


class Links:
    """All links of this node. `serve` is the one task that claims, reads and releases a socket."""

    def __init__(
        self,
        *,
        storage: Sessions,
        node_id: NodeId,
        clock: Clock,
        settings: ChannelSettings,
        window: int,
        tells_conflict: Callable[[Broker], None],
    ) -> None:
        self._storage = storage
        self._node_id = node_id
        self._clock = clock
        self._settings = settings
        self._window = window
        self._tells_conflict = tells_conflict
        self._links: dict[str, Link] = {}
        self._turns: dict[str, Turns] = {}
        self._claims: dict[str, list[float]] = {}
        self.closed: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self._late_answers = 0
        """Of sockets that are gone."""
        self.listener: Listener
        self.draining = False
        self.pace = Pace()

    def __len__(self) -> int:
        return len(self._links)

    @property
    def late_answers(self) -> int:
        """Answers that nobody waited for any more: counted and dropped."""
        return self._late_answers + sum(link.late_answers for link in self._links.values())

    def all(self) -> list[Link]:
        return list(self._links.values())

    def of(self, broker_id: str) -> Link | None:
        """The broker's live link on this node."""
        link = self._links.get(broker_id)
        return link if link and link.open else None

    def trusted(self, link: Link) -> bool:
        """Its session was renewed within ten seconds: good enough to send without a row."""
        return self._clock.monotonic() - link.renewed_at < 10.0

    def frame_limit(self, broker: Broker) -> int | None:
        """Bytes that one frame to it may have: on its socket here, or on the one that its row tells of. None while it
        has none: its next one may be another's."""
        link = self.of(broker.id)
        if link is not None:
            return link.frame_limit
        if not broker.online:
            return None
        return self._settings.frame_limit if broker.capabilities else self._settings.stock_frame_limit

    def too_often(self, broker: Broker, stock_limit: int, limit: int, within: float) -> bool:
        """Whether the broker claims again and again: more than 5 claims in 10 s, 30 for one that names instances."""
        claims = self._claims.get(broker.id, ())
        recent = sum(1 for at in claims if self._clock.monotonic() - at < within)
        return recent >= (limit if broker.instance else stock_limit)

    # -- a socket's life -----------------------------------------------------------------------------------------

    async def serve(self, socket: Socket, broker_id: str, secret: bytes, kind: Kind = "socket") -> int | None:
        """Handshake, claim, serve until the socket is gone, release. Its close code; None when it never was a link."""
        link = await self._open(socket, broker_id, secret, kind)
        if link is None:
            return None
        code = 1006
        try:
            code = await self._run(link)
        finally:
            with anyio.CancelScope(shield=True):
                await self._release(link, code)
        return code

    async def _open(self, socket: Socket, broker_id: str, secret: bytes, kind: Kind) -> Link | None:
        connect = await self._handshake(socket, broker_id)
        return None if connect is None else await self._claim(socket, broker_id, secret, connect, kind)

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
                await _close(socket, wire.Close.BAD_FRAMES, "bad_frames")
                raise Closed(wire.Close.BAD_FRAMES)
            await socket.send(wire.encode(wire.Error(code="invalid_message", message=why)))

    async def _refuse(self, socket: Socket, code: int, reason: str) -> None:
        self.closed[code] += 1
        await _close(socket, code, reason)

    async def _claim(
        self, socket: Socket, broker_id: str, secret: bytes, connect: wire.Connect, kind: Kind
    ) -> Link | None:
        if self.draining:  # since its upgrade
            await self._refuse(socket, wire.Close.DRAINING, "draining")
            return None
        claim = SessionClaim(
            broker_id=BrokerId(broker_id),
            node_id=self._node_id,
            session_id=SessionId(self._clock.uuid4()),
            kind=kind,
            last_epoch=connect.last_epoch,
            instance=connect.instance,
            version=connect.version,
            capabilities=tuple(connect.capabilities),
            window=connect.window and max(1, min(connect.window, self._window)),
        )
        try:
            claimed = await self._storage.claim_session(claim)
        except PointsmanError as fault:
            await self._refuse(socket, *_unclaimed(broker_id, fault))
            return None
        link = Link(
            socket=socket,
            broker=claimed.broker,
            session=claimed.session,
            secret=secret,
            settings=self._settings,
            window=self._window,
            clock=self._clock,
        )
        self._take_over(link, claimed.former_instance)
        link.greet()
        self.listener.arrived(link, claimed)
        return link

    def _take_over(self, link: Link, former_instance: str | None) -> None:
        """The newest socket wins: the one that this node had before is closed."""
        broker_id = link.session.broker_id
        now = self._clock.monotonic()
        self.pace.note(now)
        self._claims[broker_id] = [*self._claims.get(broker_id, ())[-63:], now]
        turns = self._turns.setdefault(broker_id, Turns())
        turns.note(now, former_instance)
        turns.note(now, link.broker.instance)
        twins = link.broker.instance is not None and turns.twins(now)
        if twins:
            self._tells_conflict(link.broker)
        former = self._links.get(broker_id)
        if former and former.session.epoch > link.session.epoch:  # its claim came first, and was answered last
            link.hang_up(wire.Close.REPLACED, "replaced")
            return
        self._links[broker_id] = link
        if former:
            former.hang_up(wire.Close.REPLACED, "other_instance" if twins else "replaced")
            former.lose()
        if self.draining:  # since its claim was asked for: who hands over may have looked for the last time
            link.hang_up(wire.Close.DRAINING, "draining")

    async def _run(self, link: Link) -> int:
        """Serve the socket until it is gone; answers its close code."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.write)
            tasks.start_soon(link.watch)
            code = await self._read(link, Events(link, self.listener, tasks))
            tasks.cancel_scope.cancel()
        return link.closing[0] if link.closing else code

    async def _read(self, link: Link, events: Events) -> int:
        bad: list[float] = []
        while True:
            try:
                text = await link.socket.receive()
            except Closed as gone:
                return gone.code
            try:
                for frame in wire.decode_from_broker(text, batch=link.can(wire.BATCH)):
                    if isinstance(frame, wire.Event):
                        events.add(frame)
                    else:
                        link.take(frame, self.listener)
            except wire.BadFrame as fault:
                self._bad(link, str(fault), bad)

    def _bad(self, link: Link, why: str, bad: list[float]) -> None:
        now = self._clock.monotonic()
        bad.append(now)
        del bad[:-BAD_FRAMES_A_MINUTE]
        link.complain(why)
        if len(bad) == BAD_FRAMES_A_MINUTE and now - bad[0] < 60.0:
            link.hang_up(wire.Close.BAD_FRAMES, "bad_frames")

    async def _release(self, link: Link, code: int) -> None:
        sent = link.sent()
        link.lose()
        if self._links.get(link.session.broker_id) is link:
            del self._links[link.session.broker_id]
        self.closed[code] += 1
        self._late_answers += link.late_answers
        try:
            released = await self._storage.release_session(link.session, code, sent)
        except PointsmanError as fault:
            log.warning("session of broker %s not released, the sweep will: %s", link.session.broker_id, fault.message)
            released = Released(cleared=False)
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

    async def renew_once(self, broker_id: str = "") -> None:
        """All of them, or the one of a broker that is said to have moved."""
        now = self._clock.monotonic()
        links = [link for link in self._links.values() if broker_id in ("", link.session.broker_id)]
        heard = [link for link in links if now - link.socket.heard_at() < self._settings.dead_after]
        if not heard:
            return
        lost = set(await self._storage.renew([link.session for link in heard]))
        for link in heard:
            if link.session.session_id in lost:
                link.hang_up(wire.Close.REPLACED, self._why_lost(link, now))
            else:
                link.renewed_at = now  # when it was asked: the answer may have lain here while this process stood still

    def _why_lost(self, link: Link, now: float) -> str:
        """To whom its broker went: of two processes with one identity one is told to stay away for a while."""
        return "other_instance" if self._turns[link.session.broker_id].twins(now) else "replaced"

    def hang_up_all(self, code: int, reason: str) -> None:
        for link in self.all():
            link.hang_up(code, reason)

    def hang_up(self, broker_id: str, code: int, reason: str) -> None:
        link = self._links.get(broker_id)
        if link:
            link.hang_up(code, reason)

    def pause(self, broker_id: str, *, paused: bool) -> None:
        link = self._links.get(broker_id)
        if link:
            link.paused = paused

    async def any(self) -> None:
        """Wait for the first link."""
        while not self._links:
            await anyio.sleep(POLL)

    async def empty(self) -> None:
        while self._links:
            await anyio.sleep(POLL)


def _unclaimed(broker_id: str, fault: PointsmanError) -> tuple[int, str]:
    """Close code and reason for whom the storage gives no session."""
    match fault:
        case NotFound():
            return wire.Close.DELETED, "deleted"
        case Overtaken():
            return wire.Close.REPLACED, "held"
        case StorageUnavailable():
            return wire.Close.DRAINING, "unavailable"
    log.warning("broker %s says of itself what cannot be stored: %s", broker_id, fault.message)
    return wire.Close.BAD_FRAMES, "bad_connect"


async def _close(socket: Socket, code: int, reason: str) -> None:
    """Say why; a peer that does not listen is not waited for."""
    with anyio.move_on_after(1.0):
        await socket.close(code, reason)
