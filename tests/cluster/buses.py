"""Signal buses for tests: each runs in the test's own task group, beside somebody who heeds what arrives."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec

from kernel.clock import SYSTEM
from kernel.node import NodeId
from kernel.signals import BusState, Signal, SignalKind
from plugins.storage.postgres.bus import PostgresSignals
from plugins.storage.postgres.connecting import Connection, Target, connect
from plugins.storage.postgres.dialling import Connect, Role

PATIENCE = 60.0


class Settings(msgspec.Struct, frozen=True):
    probe: float = 0.2


def dial(dsn: str, node_id: str, *, pooled: bool = False, listen_dsn: str | None = None) -> Connect:
    """As the storage dials for its bus."""
    cache = 0 if pooled else 1_024
    target = Target(dsn=dsn, listen_dsn=listen_dsn, statement_cache_size=cache, deadline=2.0)

    async def one(role: Role) -> Connection:
        return await connect(target, role, node_id, listen=role == "listen")

    return one


class Bus:
    """One node's bus, and what its node saw of it."""

    def __init__(self, connect: Callable[[str], Connect], *, probe: float = 0.2) -> None:
        self.node_id = NodeId(str(uuid.uuid4()))
        self.signals = PostgresSignals(
            connect=connect(self.node_id), node_id=self.node_id, clock=SYSTEM, settings=Settings(probe)
        )
        self.heard: list[Signal] = []
        self.looks = 0
        """How often it was told to look at everything."""
        self.may_catch_up = anyio.Event()
        self.may_catch_up.set()

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.signals.run)
            tasks.start_soon(self._heed)

    async def _heed(self) -> None:
        while True:
            for signal in await self.signals.wait(SYSTEM.monotonic() + 60):
                if signal.kind is SignalKind.MISSED:
                    self.looks += 1
                    await self.may_catch_up.wait()
                    self.signals.caught_up()
                else:
                    self.heard.append(signal)

    @property
    def state(self) -> BusState:
        return self.signals.state()

    def ids(self) -> set[str]:
        return {one for signal in self.heard for one in signal.ids}

    async def sees(self) -> None:
        """Until it is not blind."""
        await until(lambda: self.state is not BusState.BLIND)

    async def goes_blind(self) -> None:
        await until(lambda: self.state is BusState.BLIND)


@asynccontextmanager
async def running(*buses: Bus) -> AsyncIterator[None]:
    """All of them, from when they hear until the end of the block."""
    async with anyio.create_task_group() as tasks:
        for bus in buses:
            tasks.start_soon(bus.run)
        for bus in buses:
            await bus.sees()
        yield
        tasks.cancel_scope.cancel()


async def until(true: Callable[[], bool], patience: float = PATIENCE) -> None:
    with anyio.fail_after(patience):
        while not true():
            await anyio.sleep(0.005)


def work(*ids: str, broker: str = "b") -> Signal:
    return Signal(kind=SignalKind.WORK, broker_id=broker, ids=ids)
