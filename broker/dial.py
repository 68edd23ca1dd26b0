"""Keeps one session with some hub: dials, backs off, and when a hub asks for it dials the next before it leaves."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from broker.identity import HubAway, Identity
from broker.inbox import Inbox, Unkept
from broker.report import Reporter
from broker.session import Served, Session
from broker.settings import BrokerSettings, Unusable
from kernel import wire

log = logging.getLogger(__name__)

_OPENING = 15.0
_CLOSING = 2.0
_LONGEST_RETRY_AFTER = 60.0
_HAND_OVER_PAUSE = 2.0
"""Longest pause between two dials of a hand-over, in seconds: the old socket stands only until its deadline."""
_STRANGER = frozenset({401, 404})
"""The hub does not know us, unless it only minds the clock or the nonce."""
_NOT_STRANGE = frozenset({"clock_skew", "replay_detected"})


class Refused(Exception):
    """The hub did not take us."""

    def __init__(self, why: str, *, status: int = 0, code: str = "", retry_after: float = 0.0) -> None:
        self.is_stranger = status in _STRANGER and code not in _NOT_STRANGE
        self.retry_after = retry_after
        super().__init__(why)


class Backoff:
    """0.5 s, doubled up to 30 s, of which a random part is waited; ended by a session that stood long enough."""

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._failures = 0

    def pause(self) -> float:
        ceiling = min(self._most, self._first * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return random.uniform(0.0, ceiling)

    def reset(self) -> None:
        self._failures = 0


Rejoin = Callable[[], Awaitable[Identity]]


class Dialler:
    """Never holds two live sessions, except while it hands over from one hub to the next."""

    def __init__(
        self,
        settings: BrokerSettings,
        identity: Identity,
        inbox: Inbox,
        reporter: Reporter,
        served: Served,
        rejoin: Rejoin | None,
        instance: str,
    ) -> None:
        self._settings = settings
        self.identity = identity
        self._inbox = inbox
        self._reporter = reporter
        self._served = served
        self._rejoin = rejoin
        self._instance = instance
        self._backoff = Backoff(settings.backoff, settings.backoff_most)
        self._turn = 0
        self._alone_since: float | None = None
        """When the last session ended, while there is none; None before the first."""
        self.session: Session | None = None

    async def run(self, tasks: anyio.abc.TaskGroup) -> None:
        """For ever. `tasks` holds the sessions."""
        while True:
            session = await self._dial_until(tasks)
            while await self._stand(session):
                successor = await self._hand_over(session, tasks)
                if successor is None:
                    break
                session = successor
            await self._after(session)

    async def close(self) -> None:
        """An orderly good-bye."""
        if self.session:
            await self.session.close()

    # -- one session after the other ---------------------------------------------------------------------------------

    async def _dial_until(self, tasks: anyio.abc.TaskGroup) -> Session:
        while True:
            try:
                return await self._dial(tasks)
            except Refused as refused:
                pause = max(self._backoff.pause(), refused.retry_after)
                log.warning("%s; next attempt in %.1f s", refused, pause)
                if refused.is_stranger:
                    await self._become_known()
            await anyio.sleep(pause)

    async def _stand(self, session: Session) -> bool:
        """Until it is over (False), or the hub wants us to go (True)."""
        async with anyio.create_task_group() as tasks:
            for event in (session.over, session.advised):
                tasks.start_soon(_first_of, event, tasks.cancel_scope)
        return session.advised.is_set() and not session.over.is_set()

    async def _hand_over(self, session: Session, tasks: anyio.abc.TaskGroup) -> Session | None:
        """Dial the next hub first, then let go of this one. None when this one was over before that."""
        advice = session.advice
        assert advice is not None, "set before the event"
        with anyio.move_on_after(session.advised_at + advice.after_ms / 1000 - anyio.current_time()):
            await session.over.wait()
        backoff = Backoff(self._settings.backoff, _HAND_OVER_PAUSE)
        while not session.over.is_set():
            try:
                successor = await self._dial(tasks)
            except Refused as refused:
                log.warning("hand-over: %s", refused)
                with anyio.move_on_after(backoff.pause()):
                    await session.over.wait()
            else:
                tasks.start_soon(self._let_go, session, advice)
                return successor
        return None

    async def _let_go(self, session: Session, advice: wire.Reconnect) -> None:
        """Answers go out on the socket that asked as long as it stands."""
        left = self._settings.handshake
        if advice.deadline_ms is not None:
            left = session.advised_at + advice.deadline_ms / 1000 - anyio.current_time()
        with anyio.move_on_after(left):
            await session.idle.wait()
        await session.close(reason="reconnect")

    async def _after(self, session: Session) -> None:
        """The pause after a session. The hub's own word about when to come back wins over ours."""
        code, reason = session.end
        log.info("the session with %s is over: %d %s", session.hub, code, reason)
        if session.stood >= self._settings.settled_after:
            self._backoff.reset()
        if code == wire.Close.DELETED:
            await self._become_known()
        pause = self._backoff.pause()
        if session.advice:
            pause = max(0.0, session.advised_at + session.advice.after_ms / 1000 - anyio.current_time())
        if reason == "other_instance":
            log.error("another process runs with this broker's identity: stop it, or register one of the two anew")
            pause = self._settings.other_instance_wait
        await anyio.sleep(pause)

    async def _become_known(self) -> None:
        """The hub does not know us: register and join again, if we may."""
        if self._rejoin is None:
            log.error("the hub does not know this broker or its secret: register it again (pointsman broker register)")
            return
        try:
            self.identity = await self._rejoin()
        except (HubAway, Unusable) as fault:
            log.warning("could not join again: %s", fault)

    # -- dialling ----------------------------------------------------------------------------------------------------

    async def _dial(self, tasks: anyio.abc.TaskGroup) -> Session:
        """One attempt. Raises: Refused."""
        hubs = self._settings.hubs or self.identity.hubs
        hub = hubs[self._turn % len(hubs)]
        self._turn += 1
        try:
            socket = await self._open(hub)
            try:
                session = await self._greet(socket, hub)
            except BaseException:
                socket.transport.abort()
                raise
        except InvalidStatus as refused:
            raise _refused(hub, refused) from refused
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed, EOFError) as fault:
            raise Refused(f"{hub} cannot be dialled: {str(fault) or type(fault).__name__}") from fault
        tasks.start_soon(self._run, session)
        self._tell_gap(session)
        self.session = session
        self._reporter.attach(session)
        return session

    def _tell_gap(self, session: Session) -> None:
        """How long this broker was without a session: nothing in a hand-over that went well."""
        stands = self.session is not None and not self.session.over.is_set()
        gap = 0.0 if stands or self._alone_since is None else session.since - self._alone_since
        self._alone_since = None
        connected = session.connected
        log.info(
            "connected to %s: session %s, epoch %s, gap %.3f s",
            session.hub,
            connected.session_id,
            connected.epoch,
            gap,
        )

    async def _open(self, hub: str) -> ClientConnection:
        identity, settings = self.identity, self._settings
        headers = wire.signed_headers(
            identity.broker_id, identity.key(), "GET", wire.CONNECT_PATH, now=int(time.time())
        )
        return await connect(
            f"ws{hub.rstrip('/').removeprefix('http')}{wire.CONNECT_PATH}",
            additional_headers=headers,
            user_agent_header=f"pointsman-broker/{settings.version}".rstrip("/"),
            compression=None,
            proxy=None,
            open_timeout=_OPENING,
            close_timeout=_CLOSING,
            ping_interval=settings.ping,
            ping_timeout=max(0.1, settings.dead_after - settings.ping),
            max_size=settings.frame_limit,
            max_queue=64,
        )

    async def _greet(self, socket: ClientConnection, hub: str) -> Session:
        """`connect`, then `connected`: the epoch is on disk before the first request is read. Raises: Refused."""
        hello = wire.Connect(
            broker_id=self.identity.broker_id,
            version=self._settings.version or None,
            capabilities=list(wire.CAPABILITIES),
            window=self._settings.window,
            last_epoch=self._inbox.epoch,
            instance=self._instance,
            projects=[],
        )
        with anyio.fail_after(self._settings.handshake):
            await socket.send(wire.encode(hello))
            text = await socket.recv()
        try:
            frame = next(wire.decode_from_hub(text, batch=False))
            if not isinstance(frame, wire.Connected):
                raise Refused(f"{hub} did not begin with `connected` but with {str(text)[:200]}")
            await self._inbox.see_epoch(frame.epoch or 0)
        except wire.BadFrame as fault:
            raise Refused(f"{hub} did not begin with `connected`: {fault}") from fault
        except Unkept as fault:
            raise Refused(f"the session with {hub} cannot begin: {fault}") from fault
        return Session(socket, frame, hub, self.identity.key(), self._settings)

    async def _run(self, session: Session) -> None:
        try:
            await session.run(self._served)
        finally:
            self._reporter.detach(session)
            if self.session is session:
                self.session = None
                self._alone_since = anyio.current_time()


async def _first_of(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _refused(hub: str, refused: InvalidStatus) -> Refused:
    answer = refused.response
    code = told = ""
    try:
        error = msgspec.json.decode(answer.body or b"")["error"]
        code, told = str(error["code"]), f" {error['code']}: {error['message']}"
    except (msgspec.DecodeError, KeyError, TypeError):
        pass
    asked = answer.headers.get("Retry-After", "")
    pause = min(float(asked), _LONGEST_RETRY_AFTER) if asked.isdecimal() else 0.0
    why = f"{hub} refused the socket with {answer.status_code}{told}"
    return Refused(why, status=answer.status_code, code=code, retry_after=pause)
