"""Wakes nodes, carries no data that anything depends on, and knows its own health."""

from __future__ import annotations

from collections import OrderedDict
from enum import StrEnum
from typing import Protocol

import anyio
import msgspec

from kernel.clock import Clock
from kernel.node import NodeId

MOST_PENDING = 10_000
"""Signals that wait to be looked at; past it the oldest is forgotten, and the poll finds what it meant."""


class Kind(StrEnum):
    WORK = "work"
    """Intents of this broker are pending."""
    ENDED = "ended"
    """These intents ended."""
    PROGRESS = "progress"
    """These intents moved on."""
    CANCEL = "cancel"
    """A caller asks for these to be stopped."""
    MOVED = "moved"
    """Another session of this broker was claimed: whoever held it lets go."""


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """A hint. What does not fit, or is lost, is read from the rows."""

    kind: Kind
    broker_id: str = ""
    ids: tuple[str, ...] = ()


class BusState(StrEnum):
    HEALTHY = "healthy"
    SLOW = "slow"
    BLIND = "blind"
    """Nothing arrives: only the poll finds work, and no call goes out unrecorded."""


class Signals(Protocol):
    """The bus. Losing a signal costs latency, never work."""

    def signal(self, node_id: NodeId | None, signal: Signal) -> None:
        """Wake a node (None: its owner is not known, so all). Never waits and never raises."""
        ...

    async def wait(self, until: float) -> list[Signal]:
        """What arrived for this node; empty when the monotonic time `until` came first."""
        ...

    def state(self) -> BusState: ...

    def round_trip(self) -> float:
        """Seconds that the last probe took through the whole path."""
        ...

    def reconnects(self) -> int: ...


class InProcessSignals:
    """The bus of a hub that is alone: everything it signals it hears itself, at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending: OrderedDict[Signal, None] = OrderedDict()
        self._arrived = anyio.Event()

    def signal(self, node_id: NodeId | None, signal: Signal) -> None:
        self._pending[signal] = None
        if len(self._pending) > MOST_PENDING:
            self._pending.popitem(last=False)
        self._arrived.set()

    async def wait(self, until: float) -> list[Signal]:
        with anyio.move_on_after(max(0.0, until - self._clock.monotonic())):
            await self._arrived.wait()
        self._arrived = anyio.Event()
        taken = list(self._pending)
        self._pending.clear()
        return taken

    def state(self) -> BusState:
        return BusState.HEALTHY

    def round_trip(self) -> float:
        return 0.0

    def reconnects(self) -> int:
        return 0
