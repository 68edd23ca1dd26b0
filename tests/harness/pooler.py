"""A pooler in transaction mode, as PgBouncer is: many clients share few sessions, each for one transaction at a time.

It refuses what PgBouncer refuses (settings at connect), gives each client a key of its own, and lets LISTEN succeed
without ever delivering anything. The servers behind it trust everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Self

from anyio.from_thread import start_blocking_portal

ACCEPTED = frozenset({"user", "database", "client_encoding", "application_name", "timezone", "datestyle"})
SSL, GSS, CANCEL = 80_877_103, 80_877_104, 80_877_102
VERSION_3 = 196_608
NAME = "pooler"
"""What the server calls its sessions, whoever uses them."""
ASKS = frozenset({b"Q", b"S", b"F"})
"""What a server answers with ReadyForQuery."""


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!i", head[1:])
    return head[:1], head + await reader.readexactly(length - 4)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Session:
    """One connection to the server, lent to one client at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.client: asyncio.StreamWriter | None = None
        self.greeting = b""
        """What the server said of itself at the beginning."""
        self._asked = 0

    async def greet(self, user: str, database: str) -> None:
        named = ("user", user, "database", database, "application_name", NAME)
        words = "".join(f"{word}\0" for word in named) + "\0"
        self.writer.write(struct.pack("!ii", len(words) + 8, VERSION_3) + words.encode())
        while True:
            kind, whole = await read_message(self.reader)
            if kind == b"E":
                raise ConnectionError(whole.decode(errors="replace"))
            if kind == b"S":
                self.greeting += whole
            if kind == b"Z":
                return

    def ask(self, kind: bytes, whole: bytes) -> None:
        self._asked += kind in ASKS
        self.writer.write(whole)

    async def carry(self, free: list[Session]) -> None:
        """What the server says goes to whoever has the session; nobody hears what it says in between."""
        try:
            while True:
                kind, whole = await read_message(self.reader)
                if self.client:
                    self.client.write(whole)
                if kind == b"Z":
                    self._asked -= 1
                    if whole[-1:] == b"I" and self._asked == 0 and self.client:
                        self.client = None
                        free.append(self)
        except (asyncio.IncompleteReadError, OSError):
            if self.client:
                self.client.close()
        finally:
            if self in free:
                free.remove(self)
            await closed(self.writer)


class Pooler:
    """Enter it; `port` is where to dial."""

    host = "127.0.0.1"

    def __init__(self, target: int, *, user: str = "postgres") -> None:
        self.port = 0
        self.sessions = 0
        """Opened at the server so far."""
        self._target = target
        self._user = user
        self._free: dict[str, list[Session]] = {}
        self._keys = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            portal = opening.enter_context(start_blocking_portal("asyncio"))
            opening.enter_context(portal.wrap_async_context_manager(self._running()))
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def dsn(self, database: str) -> str:
        return f"postgresql://{self._user}@{self.host}:{self.port}/{database}"

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._met, self.host, 0)
        self.port = server.sockets[0].getsockname()[1]
        yield
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep(self._serve(reader, writer))

    def _keep(self, what: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(what)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                if database := await self._welcomed(reader, writer):
                    await self._transactions(database, reader, writer)
        finally:
            await closed(writer)

    async def _welcomed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        """The database that the client wants; None when it was sent away."""
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            body = await reader.readexactly(length - 8)
            if code in (SSL, GSS):
                writer.write(b"N")
            elif code == CANCEL:
                return None
            else:
                break
        words = body.decode().split("\0")
        asked = dict(zip(words[:-2:2], words[1:-2:2], strict=False))
        for name in asked:
            if name.lower() not in ACCEPTED:
                told = f"SFATAL\0C08P01\0Munsupported startup parameter: {name}\0\0"
                writer.write(message(b"E", told.encode()))
                return None
        session = await self._session(asked["database"])
        self._free[asked["database"]].append(session)
        key = struct.pack("!ii", next(self._keys), 0)
        writer.write(message(b"R", struct.pack("!i", 0)) + session.greeting + message(b"K", key) + message(b"Z", b"I"))
        return asked["database"]

    async def _transactions(self, database: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: Session | None = None
        try:
            while True:
                kind, whole = await read_message(reader)
                if kind == b"X":
                    return
                if session is None or session.client is not writer:
                    session = await self._session(database)
                    session.client = writer
                session.ask(kind, whole)
        finally:
            if session and session.client is writer:  # it left in mid-transaction: the session is of no more use
                session.client = None
                session.writer.close()

    async def _session(self, database: str) -> Session:
        free = self._free.setdefault(database, [])
        if free:
            return free.pop()
        session = Session(*await asyncio.open_connection(self.host, self._target))
        try:
            await session.greet(self._user, database)
        except BaseException:
            session.writer.close()
            raise
        self.sessions += 1
        self._keep(session.carry(free))
        return session
