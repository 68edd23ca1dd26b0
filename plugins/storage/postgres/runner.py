"""Runs a function of the ledger in a transaction: again when two transactions met, never when its end is unknown."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import anyio
from sqlalchemy.util.concurrency import greenlet_spawn

from kernel import StorageUnavailable
from plugins.storage.ledger.query import Overtaken, Tx
from plugins.storage.postgres.connecting import ENOUGH, Connection, Pool, drop, gone, rolled_back
from plugins.storage.postgres.faults import FAULTS, misled, repeatable, translated
from plugins.storage.postgres.tx import PostgresTx

T = TypeVar("T")
TRIES = 12
"""How often a transaction that meets others is run."""
SILENCE = 0.95
"""Of the deadline: a connection that was silent for so long under a call counts as broken."""
PAUSE = 0.002
"""Seconds before it is run again, times the number of tries, with jitter."""


class Lost(Exception):
    """The connection broke before the commit was asked for: nothing was kept."""


class Runner:
    """Everything that has no connection of its own goes through here."""

    def __init__(self, pool: Pool, deadline: float, lives: dict[str, int]) -> None:
        """`deadline`: seconds for a whole call, its repetitions included; `lives` as in `PostgresTx`."""
        self._pool = pool
        self._deadline = deadline
        self._lives = lives
        self.committed = 0
        """Writing transactions, since the start."""
        self.breaks = 0
        """Connections that broke under a call, or stood still too long."""

    async def write(self, function: Callable[[Tx], T]) -> T:
        """Committed when this returns.

        Raises: StorageUnavailable; whatever the function raises, and then nothing was written.
        """
        return await self._in_time(lambda: self._transaction(function))

    async def read(self, function: Callable[[Tx], T]) -> T:
        """Each statement sees what is committed when it begins."""
        return await self._in_time(lambda: self._reading(function))

    async def _in_time(self, once: Callable[[], Awaitable[T]]) -> T:
        try:
            with anyio.fail_after(self._deadline):
                return await self._repeated(once)
        except TimeoutError as fault:
            raise StorageUnavailable("the database did not answer within server.database_deadline") from fault

    async def _repeated(self, once: Callable[[], Awaitable[T]]) -> T:
        for number in range(1, TRIES + 1):
            try:
                return await once()
            except (Lost, Overtaken) as fault:
                met: BaseException = fault.__cause__ or fault
            except FAULTS as fault:
                if not repeatable(fault):
                    raise translated(fault) or fault from fault
                met = fault
            await anyio.sleep(PAUSE * number * random.uniform(0.5, 1.5))
        if isinstance(met, Overtaken):
            raise StorageUnavailable("others change the same row again and again: nothing was done") from met
        raise translated(met) or met from met

    async def _transaction(self, function: Callable[[Tx], T]) -> T:
        async with self._connection() as connection:
            tx = PostgresTx(connection, self._lives)
            try:
                await connection.execute("BEGIN")
                value = await greenlet_spawn(function, tx)
            except BaseException as fault:
                await rolled_back(connection)
                if misled(fault):
                    drop(connection)
                self._look(connection, fault)
                raise
            with anyio.CancelScope(shield=True):
                await self._committed(connection)
            self.committed += tx.wrote
            return value

    async def _reading(self, function: Callable[[Tx], T]) -> T:
        async with self._connection() as connection:
            try:
                return await greenlet_spawn(function, PostgresTx(connection, self._lives))
            except BaseException as fault:
                self._look(connection, fault)
                raise

    def _look(self, connection: Connection, fault: BaseException) -> None:
        """A connection that broke before anything was asked to be kept: another may do."""
        if gone(connection) and isinstance(fault, FAULTS) and not isinstance(fault, TimeoutError):
            self.breaks += 1
            raise Lost from fault

    async def _committed(self, connection: Connection) -> None:
        """Raises: StorageUnavailable when nobody can tell whether it was committed."""
        try:
            ended = await connection.execute("COMMIT", timeout=self._deadline)
        except FAULTS as fault:
            if not gone(connection) and not isinstance(fault, TimeoutError):
                raise
            self.breaks += 1
            drop(connection)
            told = "the database broke off at the commit: whether it was written is not known"
            raise StorageUnavailable(told) from fault
        if ended != "COMMIT":
            raise StorageUnavailable("the transaction failed before it was committed: nothing was done")

    async def _acquired(self) -> Any:
        """Raises: StorageUnavailable when others have them all: too many calls are no broken connection."""
        try:
            return await self._pool.acquire(timeout=self._deadline * ENOUGH)
        except TimeoutError as fault:
            raise StorageUnavailable("no connection to the database came free in time: nothing was done") from fault

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        pooled = await self._acquired()
        connection = cast("Connection", pooled)
        silent_at = anyio.current_time() + self._deadline * SILENCE
        try:
            yield connection
        except anyio.get_cancelled_exc_class():
            self.breaks += anyio.current_time() > silent_at
            raise
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0) as scope:
                await self._pool.release(pooled)
            if scope.cancelled_caught:
                drop(connection)
