"""Opens a database file: locked, migrated, with a thread that writes and one that reads."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import anyio
import msgspec
import sqlalchemy as sa

from kernel import SYSTEM, Clock, Misconfigured, SchemaState
from plugins.storage import migrations
from plugins.storage.sqlite.faults import unusable
from plugins.storage.sqlite.files import Joined, Lock, Synchronous, connect_reader, connect_writer, prepared
from plugins.storage.sqlite.sql import engine_on
from plugins.storage.sqlite.tx import SqliteTx
from plugins.storage.sqlite.worker import Reader, Writer


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, but for the file and how it is written."""

    path: str
    synchronous: Synchronous = "FULL"
    deadline: float = 5.0
    """Of each call (server.database_deadline)."""
    lost_after: float = 6.0
    stale_after: float = 15.0
    clock: Clock = SYSTEM

    def begin(self, connection: sqlite3.Connection) -> SqliteTx:
        lost, stale = int(self.lost_after * 1_000_000), int(self.stale_after * 1_000_000)
        return SqliteTx(connection, self.clock.now(), lost, stale)


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A database in use by this process, and by no other."""

    lock: Lock
    writer: Writer
    reader: Reader
    schema: str

    async def close(self) -> None:
        """Finish what was asked; give the file free. The writer closes last: it empties the write-ahead log."""
        await self.reader.close()
        await self.writer.close()
        self.lock.release()


async def opened(options: Options) -> Opened:
    """Raises: Misconfigured, with what to do, when the file cannot be used or another hub uses it."""
    path = prepared(options.path)
    lock = Lock(path)
    busy = options.deadline / 2
    writer = Writer(partial(_migrated, path, options.synchronous, busy), options.deadline, options.begin)
    reader = Reader(partial(connect_reader, path, busy), options.deadline, options.begin)
    try:
        await writer.open()
        await reader.open()
    except BaseException as fault:
        with anyio.CancelScope(shield=True):
            await writer.close()
            await reader.close()
        lock.release()
        if isinstance(fault, Exception) and not isinstance(fault, Misconfigured):
            raise unusable(str(path), fault.__cause__ or fault) from fault
        raise
    return Opened(lock=lock, writer=writer, reader=reader, schema=migrations.head())


def _migrated(path: Path, synchronous: Synchronous, busy: float) -> Joined:
    """On the writer's thread: the connection, with the schema of this code."""
    connection = connect_writer(path, synchronous, busy)
    try:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("BEGIN IMMEDIATE")
        engine = engine_on(connection)
        with engine.connect() as joined:
            migrations.upgrade(joined)
        connection.execute("COMMIT")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def schema_of(path: str) -> SchemaState:
    """The schema of the file and that of this code; nothing is changed, and a hub may be using it.

    Raises: Misconfigured when the file cannot be read.
    """
    place = Path(path).expanduser()
    return migrations.state(_revision(path, place) if place.exists() else None)


def _revision(path: str, place: Path) -> str | None:
    try:
        connection = connect_reader(place.resolve(), 1.0)
    except sqlite3.Error as fault:
        raise unusable(path, fault) from fault
    try:
        with engine_on(connection).connect() as joined:
            return migrations.current(joined)
    except sa.exc.DBAPIError as fault:
        raise unusable(path, fault.orig or fault) from fault
    finally:
        connection.close()
