"""The storage contract on one SQLite file: each operation is one function on the writer's or the reader's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kernel import BusSettings, ClaimRequest, Claims, Clock, InProcessSignals, NodeId, Signals
from plugins.storage.ledger import claims, sweeping
from plugins.storage.ledger.operations import Operations
from plugins.storage.ledger.query import Tx
from plugins.storage.sqlite.opening import Opened
from plugins.storage.sqlite.sql import SqliteSql

T = TypeVar("T")


class SqliteStorage(Operations):
    """Open and migrated. Made by `plugins.storage.sqlite.opening.opened`."""

    name = "sqlite"
    can_signal = False
    """One hub: nobody else is there to be told."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._writer = opened.writer
        self._reader = opened.reader
        self.sql = SqliteSql(opened.writer)

    async def _write(self, function: Callable[[Tx], T]) -> T:
        return await self._writer.call(function)

    async def _read(self, function: Callable[[Tx], T]) -> T:
        return await self._reader.call(function)

    def open_signals(self, node_id: NodeId, clock: Clock, settings: BusSettings) -> Signals:
        return InProcessSignals(clock)

    # -- the backend itself --------------------------------------------------------------------------------------

    @property
    def last_batch(self) -> float:
        """How many writes the last commit held."""
        return self._writer.last_batch

    @property
    def breaks(self) -> int:
        """A file has no connection that could."""
        return 0

    async def ping(self) -> None:
        await self._write(lambda _: None)
        await self._read(lambda _: None)

    async def schema_version(self) -> str:
        return self._opened.schema

    async def statement_count(self) -> int:
        return await self._write(lambda _: self._writer.committed)

    async def close(self) -> None:
        await self._opened.close()

    # -- intents -------------------------------------------------------------------------------------------------

    async def claim(self, request: ClaimRequest) -> Claims:
        """When the caller has left before its answer, nobody has in hand what was taken: it is given back."""
        return await self._writer.call(
            lambda tx: claims.claim(tx, request),
            lambda taken: self._writer.later(lambda tx: sweeping.give_back(tx, taken.intents)),
        )
