"""The far end of a link over HTTP: what is written into it is asked of a broker's endpoint; its answers are read."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.abc
import msgspec

from kernel import wire
from kernel.broker import Broker
from kernel.clock import Clock
from kernel.link import Closed

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

ABOUT = wire.Call(method="GET", path="/api/v1/info")
GREETING = 5.0
"""Seconds in which an endpoint says who it is, or is away."""
KEPT = 30.0
"""Seconds for which an idle connection is kept; less than the endpoint keeps it, so that it is ours to close."""
COVERED = (wire.DISPATCH_ID, wire.DISPATCH_ATTEMPT, wire.DISPATCH_EPOCH, wire.DISPATCH_TIMEOUT, wire.AGENT_ID)
"""Headers that are signed too: between hub and endpoint there may be somebody who would change them."""
LEFT_OUT = frozenset({wire.RECONNECT})
"""A link over HTTP has no other hub to dial: it is let go when nothing is in flight."""


class Unreached(Exception):
    """The endpoint gave no answer of its own; the text says what came instead."""


class Settings(Protocol):
    """The part of the channel's settings that a link over HTTP reads; seconds and bytes."""

    @property
    def ping(self) -> float: ...
    @property
    def send_deadline(self) -> float: ...
    @property
    def frame_limit(self) -> int: ...


class About(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What an endpoint tells of its broker. One of another make tells less, and other things under the same names."""

    broker_id: str
    version: Any = None
    capabilities: Any = None
    window: Any = None
    epoch: Any = None
    """The highest that it has seen."""
    instance: Any = None
    working: Any = None
    """The dispatches at which it works now."""

    def connect(self) -> wire.Connect:
        """As its `connect` frame would say it."""
        return wire.Connect(
            broker_id=self.broker_id.lower(),
            version=self.version if isinstance(self.version, str) else None,
            capabilities=[word for word in _texts(self.capabilities) if word not in LEFT_OUT],
            window=self.window if type(self.window) is int else None,
            last_epoch=self.epoch if type(self.epoch) is int and 0 <= self.epoch <= 2**53 else 0,
            instance=self.instance if isinstance(self.instance, str) else None,
        )


# -- asking ---------------------------------------------------------------------------------------------------------


class Caller:
    """The HTTP client of this node: one for all endpoints, made at its first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open = AsyncExitStack()
        self._client: httpx2.AsyncClient | None = None

    async def close(self) -> None:
        with anyio.move_on_after(1.0, shield=True):
            await self._open.aclose()

    async def ask(self, base: str, request: wire.Request, *, left: Callable[[], None] = lambda: None) -> wire.Response:
        """One signed request; `left` is called when its first byte may have reached the endpoint. A redirect is an
        answer and is not followed. How long an answer takes is the caller's to limit.

        Raises: Unreached.
        """
        import httpx2

        async def trace(event: str, _: object) -> None:
            if event.endswith("send_request_headers.started"):
                left()

        target = f"{request.path}?{request.query}" if request.query else request.path
        try:
            url = httpx2.URL(base).copy_with(raw_path=target.encode())
            client = await self._opened()
            async with client.stream(
                request.method, url, headers=request.headers, content=request.body, extensions={"trace": trace}
            ) as got:
                body = await self._body(got)
                return wire.Response(
                    request_id=request.request_id, status_code=got.status_code, headers=dict(got.headers), body=body
                )
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, ValueError, RuntimeError) as fault:
            # a RuntimeError: this hub has closed its client, for it stops
            raise Unreached(f"{base} cannot be reached: {str(fault) or type(fault).__name__}") from fault

    async def _body(self, got: httpx2.Response) -> bytes:
        """Of an answer that is larger than a frame its status alone is kept: what was done is done."""
        body = b""
        async for chunk in got.aiter_raw():
            body += chunk
            if len(body) > self._settings.frame_limit:
                log.warning("an answer of %s is larger than a frame: only its status is kept", got.url)
                return b""
        return body

    async def _opened(self) -> httpx2.AsyncClient:
        import httpx2

        if self._client is None:
            wait = self._settings.send_deadline
            self._client = httpx2.AsyncClient(
                headers={"Accept-Encoding": "identity", "User-Agent": "pointsman"},
                timeout=httpx2.Timeout(None, connect=GREETING, write=wait),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=KEPT),
                trust_env=False,
            )
            await self._open.enter_async_context(self._client)
        return self._client


def signed(request: wire.Request, broker_id: str, secret: bytes, now: int) -> wire.Request:
    """The same request under a signature that covers what it says of its dispatch."""
    cover = {name: value for name in COVERED if (value := request.header(name)) is not None}
    headers = wire.signed_headers(
        broker_id, secret, request.method, request.path, request.query, request.body, now=now, cover=cover
    )
    return msgspec.structs.replace(request, headers={**request.headers, **headers})


async def greet(
    caller: Caller, base: str, broker_id: str, secrets: Iterable[bytes], clock: Clock
) -> tuple[wire.Connect, bytes]:
    """Who answers there, as its `connect` frame would say it, and the key that it knows.

    Only the broker itself is ever sent work: an endpoint that answers with another id, or with none, is not it.

    Raises: Unreached.
    """
    for secret in secrets:
        asked = wire.Request.of(clock.uuid4(), ABOUT, {})
        with anyio.move_on_after(GREETING):
            response = await caller.ask(base, signed(asked, broker_id, secret, clock.now() // 1_000_000))
            if response.status_code == 401:
                continue
            return _about(base, broker_id, response).connect(), secret
        raise Unreached(f"{base} does not answer")
    raise Unreached(f"{base} takes none of the broker's keys: is its clock right, and was it joined to this hub?")


def _about(base: str, broker_id: str, response: wire.Response) -> About:
    """Raises: Unreached."""
    try:
        about = msgspec.json.decode(response.body, type=About)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
        raise Unreached(f"{base} answered {response.status_code} and does not say which broker it is") from fault
    if response.status_code != 200 or about.broker_id.lower() != broker_id:
        raise Unreached(f"{base} is the endpoint of another broker: {about.broker_id[:64]}")
    return about


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


# -- the socket that is none ----------------------------------------------------------------------------------------


class HttpSocket:
    """What a link needs of a socket (`kernel.link.Socket`), over a broker's endpoint: frames in, frames out."""

    def __init__(
        self,
        *,
        caller: Caller,
        base: str,
        broker: Broker,
        hello: wire.Connect,
        secret: bytes,
        settings: Settings,
        clock: Clock,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._caller = caller
        self._base = base
        self._broker = broker
        self._secret = secret
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._ours = bool(hello.capabilities)
        self._epoch: dict[str, str] = {}
        self._incoming: list[str] = [wire.encode(hello)]
        self._arrived = anyio.Event()
        self._asked: dict[str, wire.Request] = {}
        self._heard_at = clock.monotonic()
        self._code: int | None = None
        self.connected = anyio.Event()
        """This node holds the broker."""
        self.used_at = clock.monotonic()
        """When a request was last sent or answered."""

    # -- as a socket -------------------------------------------------------------------------------------------------

    async def receive(self) -> str:
        """Raises: Closed."""
        while not self._incoming:
            if self._code is not None:
                raise Closed(self._code)
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._incoming.pop(0)

    async def send(self, text: str) -> None:
        """Until everything is on its way. Raises: Closed."""
        if self._code is not None:
            raise Closed(self._code)
        waits: list[Callable[[], Awaitable[None]]] = []
        for frame in wire.decode_from_hub(text, batch=True):
            match frame:
                case wire.Connected():
                    self._greeted(frame)
                case wire.Request():
                    left = anyio.Event()
                    self._tasks.start_soon(self._ask, frame, left)
                    waits.append(left.wait)
                case wire.Cancel():
                    self._tasks.start_soon(self._cancel, frame.dispatch_id or "")
                case _:
                    pass
        for wait in waits:
            await wait()
        if self._code is not None:
            raise Closed(self._code)

    async def close(self, code: int, reason: str) -> None:
        self._end(code)

    def abort(self) -> None:
        self._end(1006)

    def heard_at(self) -> float:
        return self._heard_at

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code
            self._arrived.set()

    def _put(self, frame: wire.Frame) -> None:
        self._incoming.append(wire.encode(frame))
        self._arrived.set()

    # -- as a client -------------------------------------------------------------------------------------------------

    def _greeted(self, connected: wire.Connected) -> None:
        self._epoch = {wire.DISPATCH_EPOCH: str(connected.epoch)}
        self.connected.set()
        self._tasks.start_soon(self._probe)

    async def _ask(self, request: wire.Request, left: anyio.Event) -> None:
        """What gives no answer is lost, and with it the link: its work is driven again, here or elsewhere."""
        self._asked[request.request_id] = request
        self.used_at = self._clock.monotonic()
        try:
            response = await self._answer(request, left.set)
        except Unreached as why:
            log.warning("broker %s (%s): %s", self._broker.name, self._broker.id, why)
            self._end(1006)
        else:
            self._put(response)
        finally:
            del self._asked[request.request_id]
            self.used_at = self._clock.monotonic()
            left.set()

    async def _answer(self, request: wire.Request, left: Callable[[], None] = lambda: None) -> wire.Response:
        """The broker's own answer: what stands between it and this hub has answers, too, which say nothing of the
        work. A key that it does not know any more is none either: nothing was run, and another key may do.

        Raises: Unreached.
        """
        now = self._clock.now() // 1_000_000
        response = await self._caller.ask(self._base, signed(request, self._broker.id, self._secret, now), left=left)
        own = not self._ours or (response.header(wire.BROKER_ID) or "").lower() == self._broker.id
        if not own or response.status_code == 401 or not 200 <= response.status_code <= 599:
            who = "the broker" if own else "something between this hub and the broker"
            raise Unreached(f"{who} answered {response.status_code}: {response.body[:200]!r}")
        self._heard_at = self._clock.monotonic()
        return response

    async def _cancel(self, dispatch_id: str) -> None:
        """Best effort, as on a socket: the answer to the request itself tells what became of it."""
        call = wire.Call(method="POST", path=f"/api/v1/dispatches/{dispatch_id}/cancel")
        try:
            with anyio.move_on_after(self._settings.send_deadline):
                await self._answer(wire.Request.of(self._clock.uuid4(), call, self._epoch))
        except Unreached as why:
            log.warning("dispatch %s could not be cancelled: %s", dispatch_id, why)

    async def _probe(self) -> None:
        """A link over HTTP has no pings: it asks now and then who is there, and at what it works. One that never
        answers is dead to whoever watches `heard_at`."""
        while True:
            await anyio.sleep(self._settings.ping)
            try:
                with anyio.move_on_after(self._settings.send_deadline):
                    self._hear(await self._answer(wire.Request.of(self._clock.uuid4(), ABOUT, self._epoch)))
            except Unreached as why:
                log.info("broker %s (%s): %s", self._broker.name, self._broker.id, why)

    def _hear(self, response: wire.Response) -> None:
        if response.status_code == 412:
            self._end(wire.Close.REPLACED)
            return
        told = response.json()
        working = _texts(told.get("working")) if isinstance(told, dict) else []
        for request_id, request in self._asked.items():
            if request.header(wire.DISPATCH_ID) in working:
                self._put(wire.Accepted(request_id=request_id))
