"""The storage contract on PostgreSQL, shared by any number of hubs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio

from kernel import (
    Agent,
    AgentView,
    BusSettings,
    ClaimRequest,
    Claims,
    Clock,
    End,
    Intent,
    IntentId,
    NewIntent,
    Node,
    NodeId,
    Recorded,
    Recording,
    Session,
    SessionId,
    Settings,
    Settled,
    Signals,
    is_uuid,
)
from plugins.storage import migrations
from plugins.storage.ledger import nodes, sessions
from plugins.storage.ledger.operations import Operations
from plugins.storage.ledger.query import Tx
from plugins.storage.postgres.bus import PostgresSignals
from plugins.storage.postgres.connecting import Connection, Pool, Target, connect, open_pool
from plugins.storage.postgres.engine import engine_to
from plugins.storage.postgres.hot import Hot
from plugins.storage.postgres.runner import Runner
from plugins.storage.postgres.sql import PostgresSql

T = TypeVar("T")
RENEWALS = 20
RENEWAL_PAUSE = 0.05
"""Seconds between two tries to renew what somebody else was writing."""


class PostgresStorage(Operations):
    """Open and migrated."""

    name = "postgres"
    can_signal = True

    def __init__(self, target: Target, node_id: NodeId, pool: Pool, upkeep: Pool, settings: Settings) -> None:
        """`upkeep` has one connection, for what may never wait behind calls."""
        lives = {
            "lost_after": int(settings.node.lost_after * 1_000_000),
            "stale_after": int(settings.channel.stale_after * 1_000_000),
        }
        self._target = target
        self._node_id = node_id
        self._pools = (pool, upkeep)
        self._runner = Runner(pool, target.deadline, lives)
        self._upkeep = Runner(upkeep, target.deadline, lives)
        self._hot = Hot(self._dial, target.deadline, lives)
        self._engine = engine_to(target, "sql", node_id)
        self.sql = PostgresSql(self._engine, target.deadline)

    async def _write(self, function: Callable[[Tx], T]) -> T:
        return await self._runner.write(function)

    async def _read(self, function: Callable[[Tx], T]) -> T:
        return await self._runner.read(function)

    async def _dial(self, role: str) -> Connection:
        return await connect(self._target, role, self._node_id, listen=role == "listen")

    def open_signals(self, node_id: NodeId, clock: Clock, settings: BusSettings) -> Signals:
        return PostgresSignals(connect=self._dial, node_id=node_id, clock=clock, settings=settings)

    # -- the backend itself --------------------------------------------------------------------------------------

    @property
    def last_batch(self) -> float:
        """How many writes the last commit held."""
        return self._hot.last_batch

    @property
    def breaks(self) -> int:
        return self._runner.breaks + self._upkeep.breaks + self._hot.breaks

    async def ping(self) -> None:
        await self._read(lambda tx: tx.now)

    async def schema_version(self) -> str:
        return migrations.head()

    async def statement_count(self) -> int:
        return self._runner.committed + self._upkeep.committed + self._hot.committed

    async def close(self) -> None:
        """What is still under way has a moment to end."""
        with anyio.CancelScope(shield=True):
            self._hot.close()
            for pool in self._pools:
                with anyio.move_on_after(2.0) as scope:
                    await pool.close()
                if scope.cancelled_caught:
                    pool.terminate()
            await self._engine.dispose()

    # -- what may never wait behind calls ------------------------------------------------------------------------

    async def beat(self, node_id: NodeId, draining: bool) -> Node | None:
        return await self._upkeep.write(lambda tx: nodes.beat(tx, node_id, draining))

    async def renew(self, held: Sequence[Session]) -> tuple[SessionId, ...]:
        """A row that somebody else is writing is asked for again, and left to the next renewal if that takes long."""
        lost: list[SessionId] = []
        left = tuple(held)
        for _ in range(RENEWALS):
            asked = left
            renewal = await self._upkeep.write(lambda tx, asked=asked: sessions.renew(tx, asked))  # type: ignore[misc]
            lost += renewal.lost
            left = renewal.busy
            if not left:
                break
            await anyio.sleep(RENEWAL_PAUSE)
        return tuple(lost)

    # -- what every call goes through ----------------------------------------------------------------------------

    async def record(self, recording: Recording) -> Recorded:
        return await self._hot.record(recording) or await super().record(recording)

    async def claim(self, request: ClaimRequest) -> Claims:
        return await self._hot.claim(request, super().claim)

    async def end(self, end: End) -> Settled:
        return await self._hot.end(end) or await super().end(end)

    async def insert_ended(self, intent: NewIntent, end: End) -> Settled:
        return await self._hot.store(intent, end) or await super().insert_ended(intent, end)

    async def find_intents(self, ids: Sequence[IntentId]) -> list[Intent]:
        return [intent for intent, _ in await self._hot.intents(ids)]

    async def follow(self, ids: Sequence[IntentId]) -> list[tuple[Intent, Agent | None]]:
        return await self._hot.intents(ids)

    async def find_agent(self, ref: str, project_id: str | None = None) -> AgentView | None:
        if project_id is None and is_uuid(ref):
            return await self._hot.view(ref.lower())
        return await super().find_agent(ref, project_id)


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
    upkeep = await open_pool(
        target, node_id, "upkeep", min_size=1, max_size=1, idle=wanted.pool_idle, lifetime=wanted.pool_lifetime
    )
    return PostgresStorage(target, node_id, pool, upkeep, settings)
