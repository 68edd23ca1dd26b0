"""Claims brokers that nobody holds and that have an HTTP endpoint, and lets them go when nothing is to be done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import anyio
import anyio.abc

from kernel import wire
from kernel.broker import Broker, BrokerId
from kernel.clock import Clock
from kernel.credentials import open_secret
from kernel.direct import Caller, HttpSocket, Settings, Unreached, greet
from kernel.errors import BrokerOffline, PointsmanError, StorageUnavailable
from kernel.keyring import Keyring
from kernel.links import Links
from kernel.storage import SealedSecret

log = logging.getLogger(__name__)

LOOK = 0.25
"""Seconds between two looks at whether a link is idle."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds for which an endpoint that did not answer is left alone: doubled each time."""
SETTLED = 30.0
"""A link that stood so long ends the backoff."""
BATCH = 100
"""Brokers that one look claims at most."""


class Storage(Protocol):
    """What is asked of the backend here."""

    async def find_broker(self, ref: str) -> Broker | None: ...

    async def broker_secrets(self, broker_id: BrokerId) -> list[SealedSecret]: ...

    async def endpoints_waiting(self, limit: int) -> list[Broker]: ...


class DirectSettings(Settings, Protocol):
    @property
    def direct_idle(self) -> float: ...


class Silence:
    """An endpoint that did not answer, or whose link was lost: how often, and until when it is left alone."""

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0

    def add(self, now: float, clock: Clock) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures, 30))
        self.failures += 1
        self.until = now + pause + clock.jitter(pause / 4)


class Try:
    """One attempt to hold a broker: `decided` once it is known whether anybody does."""

    def __init__(self) -> None:
        self.decided = anyio.Event()
        self.failed: str | None = None

    def fail(self, why: str) -> None:
        self.failed = why
        self.decided.set()


class Directs:
    """The links of this node over HTTP. The claim decides who holds a broker: a socket always may, this only what
    nobody holds (design/dispatch.md section 6)."""

    def __init__(
        self,
        *,
        storage: Storage,
        links: Links,
        keyring: Keyring,
        clock: Clock,
        settings: DirectSettings,
        every: float,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._storage = storage
        self._links = links
        self._keyring = keyring
        self._clock = clock
        self._settings = settings
        self._every = every
        self._tries: dict[str, Try] = {}
        self._silences: dict[str, Silence] = {}
        self._tasks = tasks
        self._caller = Caller(settings)

    def answers(self, broker: Broker) -> bool:
        """It has an endpoint, and that is not known to be silent."""
        silence = self._silences.get(broker.id)
        return broker.endpoint is not None and (silence is None or self._clock.monotonic() >= silence.until)

    async def hold(self, broker: Broker) -> None:
        """Until somebody holds it. Raises: BrokerOffline."""
        attempt = self.want(broker)
        if attempt:
            await attempt.decided.wait()
            if attempt.failed:
                raise BrokerOffline(
                    f"broker {broker.name} has no socket, and its endpoint cannot be used: {attempt.failed}",
                    details={"brokerId": broker.id, "reason": "endpoint_silent"},
                )

    def want(self, broker: Broker) -> Try | None:
        """Hold it, if nobody does; None while this hub stops."""
        if self._links.draining:
            return None
        attempt = self._tries.get(broker.id)
        if attempt is None:
            attempt = self._tries[broker.id] = Try()
            self._tasks.start_soon(self._serve, broker.id, attempt)
        return attempt

    async def moved(self, broker_id: str) -> None:
        """Its endpoint is another, or none: what is known of the old one is forgotten. Nodes that call the old one
        find out when they renew."""
        self._silences.pop(broker_id, None)
        await self._links.renew_once(broker_id)

    # -- the tasks ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look for work of brokers that nobody holds, until cancelled."""
        try:
            while True:
                await anyio.sleep(self._clock.jitter(self._every))
                await self._look()
        finally:
            await self._caller.close()

    async def _look(self) -> None:
        """What was stored while the endpoint was silent, or is left of a hub that died."""
        try:
            for broker in await self._storage.endpoints_waiting(BATCH):
                if self.answers(broker):
                    self.want(broker)
        except StorageUnavailable:
            log.warning("no endpoint was looked for: the database does not answer")

    async def _serve(self, broker_id: str, attempt: Try) -> None:
        """From the greeting to the release. Who waits for it is told in any case."""
        started = self._clock.monotonic()
        code: int | None = 1006
        try:
            code = await self._held(broker_id, attempt)
        except Unreached as why:
            log.warning("broker %s is not called: %s", broker_id, why)
            attempt.fail(str(why))
        except PointsmanError as fault:
            log.warning("broker %s is not called: %s", broker_id, fault.message)
            attempt.fail(fault.message)
        finally:
            attempt.decided.set()
            del self._tries[broker_id]
        lost = code in (1006, wire.Close.NO_PONG)
        self._remember(broker_id, started, lost=lost)
        if code is not None and not lost:
            await self._look()  # it may have come while the link was let go

    def _remember(self, broker_id: str, started: float, *, lost: bool) -> None:
        now = self._clock.monotonic()
        if now - started >= SETTLED or not lost:
            self._silences.pop(broker_id, None)
        if lost:
            self._silences.setdefault(broker_id, Silence()).add(now, self._clock)

    async def _held(self, broker_id: str, attempt: Try) -> int | None:
        """The close code of its link; None when it never was one. Raises: Unreached, PointsmanError."""
        broker = await self._storage.find_broker(broker_id)
        if broker is None or broker.endpoint is None:
            raise Unreached("it has no endpoint any more")
        hello, secret = await greet(
            self._caller, broker.endpoint, broker.id, await self._secrets(broker.id), self._clock
        )
        async with anyio.create_task_group() as tasks:
            socket = HttpSocket(
                caller=self._caller,
                base=broker.endpoint,
                broker=broker,
                hello=hello,
                secret=secret,
                settings=self._settings,
                clock=self._clock,
                tasks=tasks,
            )
            tasks.start_soon(self._attend, broker.id, socket, attempt)
            code = await self._links.serve(socket, broker.id, secret, kind="direct")
            tasks.cancel_scope.cancel()
        return code

    async def _secrets(self, broker_id: BrokerId) -> Sequence[bytes]:
        """Newest first: after a rotation the broker may still have the old one."""
        sealed = await self._storage.broker_secrets(broker_id)
        return [open_secret(self._keyring, one.sealed, broker_id, one.key_id) for one in sealed]

    async def _attend(self, broker_id: str, socket: HttpSocket, attempt: Try) -> None:
        """Tell when it is held; let it go, in order, when nothing was to be done for a while."""
        await socket.connected.wait()
        attempt.decided.set()
        while True:
            await anyio.sleep(LOOK)
            link = self._links.of(broker_id)
            idle = self._clock.monotonic() - socket.used_at
            if link and link.socket is socket and link.settled and idle >= self._settings.direct_idle:
                link.hang_up(wire.Close.ORDERLY, "idle")
