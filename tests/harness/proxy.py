"""A TCP way to one port that a test can break: refused, reset, silent, slow, cut, or open at one end only.

It lives in a thread of its own, so that it carries on while the test waits. What `stall` holds back is not lost: it
arrives after `heal`, as TCP would repeat it when a network comes back. Who wants it lost cuts the connections first.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal

Direction = Literal["up", "down"]
"""`up` from who dialled to the port behind, `down` back."""
End = Literal["client", "server"]
BOTH: frozenset[Direction] = frozenset({"up", "down"})
ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends RST."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What happens to the bytes of one connection."""

    stalled: frozenset[Direction] = frozenset()
    delay: float = 0.0
    """Seconds for each piece that is carried, in each direction."""
    resets: bool = False
    """A new connection is accepted and reset."""


FINE = Conditions()


class Witness(Protocol):
    """Hears what passes through one connection, each piece before it is carried on."""

    def heard(self, direction: Direction, piece: bytes) -> None: ...
    def over(self) -> None: ...


class Connection:
    """One connection through the proxy: both its streams, and the conditions that hold for it."""

    def __init__(self, client: SocketStream, target: int, conditions: Conditions, witness: Witness | None) -> None:
        self.client = client
        self.witness = witness
        self.server: SocketStream | None = None
        self.target = target
        self.conditions = conditions
        self._changed = anyio.Event()
        self._over = anyio.Event()

    def put_under(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._changed.set()
        self._changed = anyio.Event()

    async def run(self) -> None:
        """Carries until one end closes, which the other is told, or until it is cut."""
        async with anyio.create_task_group() as pumps:
            pumps.start_soon(self._carry, pumps)
            await self._over.wait()
            pumps.cancel_scope.cancel()
        if self.witness:
            self.witness.over()
        for stream in (self.client, self.server):
            if stream:
                with anyio.CancelScope(shield=True), contextlib.suppress(OSError, anyio.BrokenResourceError):
                    await stream.aclose()

    async def _carry(self, pumps: TaskGroup) -> None:
        await self._passable("up")
        try:
            self.server = await anyio.connect_tcp(Proxy.host, self.target)
        except OSError:
            return self.cut()
        pumps.start_soon(self._pump, "up", self.client, self.server)
        pumps.start_soon(self._pump, "down", self.server, self.client)
        return None

    async def _pump(self, direction: Direction, source: SocketStream, sink: SocketStream) -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                piece = await source.receive()
                if self.conditions.delay:
                    await anyio.sleep(self.conditions.delay)
                await self._passable(direction)
                if self.witness:
                    self.witness.heard(direction, piece)
                await sink.send(piece)
        await self._passable(direction)  # the end of a stream is news, too
        self._over.set()

    async def _passable(self, direction: Direction) -> None:
        while direction in self.conditions.stalled:
            await self._changed.wait()

    def cut(self) -> None:
        """Both ends get a reset."""
        for stream in (self.client, self.server):
            if stream:
                _abort(stream)
        self._over.set()

    def forget(self, end: End) -> None:
        """This end is reset; the other is not told, and what it sends goes nowhere."""
        self.put_under(Conditions(stalled=BOTH))
        if gone := self.client if end == "client" else self.server:
            _abort(gone)


class Proxy:
    """Enter it; `port` is where to dial. Each fault says whether it is for existing or for new connections."""

    host = "127.0.0.1"

    def __init__(self, target: int, *, witness: Callable[[], Witness] | None = None) -> None:
        """`witness` makes one for each connection."""
        self.target = target
        self.witness = witness
        self.port = 0
        self.accepted = 0
        """Connections so far, refused ones not among them."""
        self._new = FINE
        self._open: set[Connection] = set()
        self._listener: Listener[SocketStream] | None = None
        self._portal: BlockingPortal
        self._tasks: TaskGroup
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self._portal = opening.enter_context(start_blocking_portal("asyncio"))
            opening.enter_context(self._portal.wrap_async_context_manager(self._running()))
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def open(self) -> int:
        """Connections through it now."""
        return self._do(lambda: len(self._open))

    # -- conditions

    def heal(self) -> None:
        """Everything is carried again, and what was held back arrives."""
        self._put_under(FINE, existing=True, new=True)
        self._portal.call(self._listen)

    def refuse(self) -> None:
        """Nobody listens for new connections; the existing ones stay as they are."""
        self._portal.call(self._refuse)

    def reset(self) -> None:
        """New connections are accepted and reset."""
        self._put_under(Conditions(resets=True), existing=False, new=True)

    def stall(self, *directions: Direction, existing: bool = True, new: bool = True) -> None:
        """A black hole: nothing passes (in these directions), and nobody is told. New ones are accepted."""
        self._put_under(Conditions(stalled=frozenset(directions) or BOTH), existing=existing, new=new)

    def delay(self, seconds: float, *, existing: bool = True, new: bool = True) -> None:
        self._put_under(Conditions(delay=seconds), existing=existing, new=new)

    def retarget(self, port: int) -> None:
        """New connections go to another port, as an address that moves in a failover."""
        self.target = port

    # -- events

    def cut(self) -> int:
        """Resets all existing connections, and says how many."""
        return self._do(self._cut)

    def half_open(self, gone: End = "server") -> None:
        """One end of each existing connection is gone without the other's hearing of it."""

        def forget() -> None:
            for connection in self._open:
                connection.forget(gone)

        self._do(forget)

    # -- how

    def _do(self, what: Callable[[], T]) -> T:
        async def done() -> T:
            return what()

        answer: T = self._portal.call(done)
        return answer

    def _put_under(self, conditions: Conditions, *, existing: bool, new: bool) -> None:
        def change() -> None:
            if new:
                self._new = conditions
            for connection in self._open if existing else ():
                connection.put_under(conditions)

        self._do(change)

    def _cut(self) -> int:
        connections = tuple(self._open)
        for connection in connections:
            connection.cut()
        return len(connections)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self._tasks:
            await self._listen()
            yield
            await self._refuse()
            self._cut()
            self._tasks.cancel_scope.cancel()

    async def _listen(self) -> None:
        if self._listener is None:
            listening = await anyio.create_tcp_listener(local_host=self.host, local_port=self.port)
            (self._listener,) = listening.listeners
            self.port = self._listener.extra(SocketAttribute.local_port)
            self._tasks.start_soon(self._serve, self._listener)

    async def _refuse(self) -> None:
        if self._listener:
            await self._listener.aclose()
            self._listener = None

    async def _serve(self, listener: Listener[SocketStream]) -> None:
        with contextlib.suppress(anyio.ClosedResourceError):
            await listener.serve(self._carry, self._tasks)

    async def _carry(self, client: SocketStream) -> None:
        self.accepted += 1
        if self._new.resets:
            return _abort(client)
        connection = Connection(client, self.target, self._new, self.witness() if self.witness else None)
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)
        return None


def _abort(stream: SocketStream) -> None:
    """Closes with RST, where `aclose` would send FIN."""
    with contextlib.suppress(OSError):
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    transport: Any = stream._transport  # type: ignore[attr-defined]
    transport.abort()
