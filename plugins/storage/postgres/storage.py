"""The storage contract on PostgreSQL, shared by any number of hubs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio

from kernel import BusSettings, Clock, NodeId, Settings, Signals
from plugins.storage import migrations
from plugins.storage.ledger.operations import Operations
from plugins.storage.ledger.query import Tx
from plugins.storage.postgres.bus import PostgresSignals
from plugins.storage.postgres.connecting import Connection, Pool, Target, connect, open_pool
from plugins.storage.postgres.dialling import Role
from plugins.storage.postgres.engine import engine_to
from plugins.storage.postgres.runner import Runner
from plugins.storage.postgres.sql import PostgresSql

T = TypeVar("T")


class PostgresStorage(Operations):
    """Open and migrated."""

    name = "postgres"
    can_signal = True

    def __init__(self, target: Target, node_id: NodeId, pool: Pool, runner: Runner) -> None:
        self._target = target
        self._node_id = node_id
        self._pool = pool
        self._runner = runner
        self._engine = engine_to(target, "sql", node_id)
        self.sql = PostgresSql(self._engine, target.deadline)

    async def _write(self, function: Callable[[Tx], T]) -> T:
        return await self._runner.write(function)

    async def _read(self, function: Callable[[Tx], T]) -> T:
        return await self._runner.read(function)

    def open_signals(self, node_id: NodeId, clock: Clock, settings: BusSettings) -> Signals:
        async def dial(role: Role) -> Connection:
            return await connect(self._target, role, node_id, listen=role == "listen")

        return PostgresSignals(connect=dial, node_id=node_id, clock=clock, settings=settings)

    # -- the backend itself --------------------------------------------------------------------------------------

    @property
    def last_batch(self) -> float:
        """How many writes the last commit held."""
        return 1.0

    @property
    def breaks(self) -> int:
        return self._runner.breaks

    async def ping(self) -> None:
        await self._read(lambda tx: tx.now)

    async def schema_version(self) -> str:
        return migrations.head()

    async def statement_count(self) -> int:
        return self._runner.committed

    async def close(self) -> None:
        """What is still under way has a moment to end."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(2.0) as scope:
                await self._pool.close()
            if scope.cancelled_caught:
                self._pool.terminate()
            await self._engine.dispose()


async def assembled(target: Target, settings: Settings, node_id: NodeId) -> PostgresStorage:
    """A migrated database, in use by this node.

    Raises: Misconfigured, Unreachable.
    """
    wanted = settings.storage
    pool = await open_pool(
        target,
        node_id,
        min_size=wanted.pool_min,
        max_size=wanted.pool_max,
        idle=wanted.pool_idle,
        lifetime=wanted.pool_lifetime,
    )
    runner = Runner(pool, target.deadline, settings.node.lost_after, settings.channel.stale_after)
    return PostgresStorage(target, node_id, pool, runner)
