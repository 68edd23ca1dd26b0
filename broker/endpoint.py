"""The broker's own HTTP address: what comes there is signed, and served, as if it had come on a socket."""

from __future__ import annotations

import socket as sockets
import uuid
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Protocol

import anyio
import msgspec

from broker.answer import Answer, Refusal
from broker.identity import Identity
from broker.settings import BrokerSettings, Unusable
from broker.work import Asker
from kernel import wire

BODY = 10.0
"""Seconds in which the body of a request has to come."""
KEPT = 75.0
"""Seconds for which an idle connection is kept: longer than a hub keeps it, so that no request meets its end."""
MOST_CONNECTIONS = 2_048
GOODBYE = 2
"""Seconds that requests under way get at a stop. What they asked for goes on: their answers are in the inbox."""
COVERED = frozenset(
    name.lower()
    for name in (wire.DISPATCH_ID, wire.DISPATCH_ATTEMPT, wire.DISPATCH_EPOCH, wire.DISPATCH_TIMEOUT, wire.AGENT_ID)
)
"""What a request says of its dispatch must be signed here: there may be somebody in between who would change it."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Served(Protocol):
    """Who serves what comes. It may not wait."""

    def take(self, asker: Asker, request: wire.Request) -> None: ...


class Caller:
    """Who asked over HTTP: it gets one answer, on the connection on which it waits."""

    def __init__(self, identity: Identity, hub: str) -> None:
        self.broker_id = identity.broker_id
        self.secret = identity.key()
        self.hub = hub
        self._answer: Answer | None = None
        self._told = anyio.Event()

    def answer(self, request: wire.Request, answer: Answer) -> None:
        self._answer = answer
        self._told.set()

    def accept(self, request: wire.Request) -> None:
        """Told to whoever asks at what this broker works."""

    async def told(self) -> Answer:
        await self._told.wait()
        assert self._answer, "set before the event"
        return self._answer


class Endpoint:
    """An ASGI application, and the server that runs it."""

    def __init__(self, settings: BrokerSettings, identity: Callable[[], Identity], served: Served) -> None:
        import uvicorn

        class Server(uvicorn.Server):
            """Signals are the broker's own affair."""

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        self._settings = settings
        self._identity = identity
        self._served = served
        self._over = anyio.Event()
        self._server = Server(
            uvicorn.Config(
                self,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=int(KEPT),
                timeout_graceful_shutdown=GOODBYE,
            )
        )

    async def run(self, listening: sockets.socket) -> None:
        try:
            await self._server.serve(sockets=[listening])
        finally:
            self._over.set()

    async def close(self) -> None:
        self._server.should_exit = True
        with anyio.move_on_after(GOODBYE + 1.0):
            await self._over.wait()

    # -- one request ---------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        identity = self._identity()
        try:
            request = await self._request(scope, receive)
            answer = await self._served_to(Caller(identity, self._hub(identity)), request)
        except Refusal as refusal:
            answer = refusal.answer
        except ConnectionResetError:
            return
        headers = {**answer.headers, wire.BROKER_ID: identity.broker_id, "Content-Length": str(len(answer.body))}
        named = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": named})
        await send({"type": "http.response.body", "body": answer.body})

    async def _served_to(self, caller: Caller, request: wire.Request) -> Answer:
        self._served.take(caller, request)
        return await caller.told()

    async def _request(self, scope: Message, receive: Receive) -> wire.Request:
        """Raises: Refusal; ConnectionResetError when nobody is there any more."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = wire.Request(
            request_id=str(uuid.uuid4()),
            method=scope["method"],
            path=scope["raw_path"].decode("latin-1").partition("?")[0],
            query=scope["query_string"].decode("latin-1"),
            headers=headers,
        )
        if request.path != "/healthz":
            _check_head(request)
        return msgspec.structs.replace(request, body=await self._body(receive))

    async def _body(self, receive: Receive) -> bytes:
        body = b""
        with anyio.move_on_after(BODY):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError
                chunk: bytes = message.get("body", b"")
                body += chunk
                if len(body) > self._settings.frame_limit:
                    raise Refusal(413, "payload_too_large", f"a request has at most {self._settings.frame_limit} bytes")
                if not message.get("more_body"):
                    return body
        raise Refusal(408, "body_late", f"the body did not come within {BODY:g} s")

    def _hub(self, identity: Identity) -> str:
        """The address that agents get for a hub which names none of its own."""
        return next(iter(self._settings.hubs or identity.hubs), "")


def _check_head(request: wire.Request) -> None:
    """Nothing that is not signed is read further. Raises: Refusal."""
    if not request.header(wire.SIGNATURE):
        raise Refusal(401, "invalid_signature", "only a hub that knows this broker's secret may call it")
    signed = {name.lower() for name, _ in wire.covered(request.headers)}
    bare = sorted(name for name in request.headers if name.lower() in COVERED - signed)
    if bare:
        raise Refusal(401, "invalid_signature", f"the signature does not cover {', '.join(bare)}")


def listening_at(address: str) -> sockets.socket:
    """A socket for `HOST:PORT`; port 0 takes any free one. Raises: Unusable."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise Unusable(f"cannot listen on {address!r}: give an address as 127.0.0.1:9810")
    listening = sockets.socket(sockets.AF_INET6 if ":" in host else sockets.AF_INET, sockets.SOCK_STREAM)
    try:
        listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        listening.bind((host, int(port)))
        listening.listen(1024)
    except OSError as fault:
        listening.close()
        raise Unusable(
            f"cannot listen on {address}: {fault.strerror or fault}; choose another with --listen"
        ) from fault
    return listening
