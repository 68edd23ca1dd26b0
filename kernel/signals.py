"""Wakes nodes, carries no data that anything depends on, and knows its own health."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import anyio
import msgspec

from kernel.clock import Clock
from kernel.latch import Latch
from kernel.node import NodeId

MOST_PENDING = 10_000
"""Signals and ids that wait to be looked at; past it they are forgotten, and everything is looked at instead."""


class SignalKind(StrEnum):
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
    CHANGED = "changed"
    """This broker was paused, resumed or deleted: whoever holds it reads its row."""
    REVOKED = "revoked"
    """This broker has a new secret: whoever holds one of these sessions, that stand on the old one, lets go."""
    MISSED = "missed"
    """Signals may have been lost: everything that this node holds or waits for is looked at. Made by the bus itself."""


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """A hint. What does not fit, or is lost, is read from the rows."""

    kind: SignalKind
    broker_id: str = ""
    ids: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        return 1 + len(self.ids)


MISSED = Signal(kind=SignalKind.MISSED)


class BusState(StrEnum):
    HEALTHY = "healthy"
    SLOW = "slow"
    BLIND = "blind"
    """Nothing arrives: only the poll finds work, and no call goes out unrecorded."""


class Signals(Protocol):
    """The bus. Losing a signal costs latency, never work."""

    async def run(self) -> None:
        """Carry signals until cancelled."""
        ...

    def signal(self, node_id: NodeId | None, signal: Signal) -> None:
        """Wake a node (None: its owner is not known, so all). Never waits and never raises."""
        ...

    async def wait(self, until: float) -> list[Signal]:
        """What arrived for this node; empty when the monotonic time `until` came first."""
        ...

    def caught_up(self) -> None:
        """What the last `MISSED` asked for is done. Only then may a bus that lost its listener be healthy again."""
        ...

    def state(self) -> BusState: ...

    def trouble(self) -> str:
        """Why it is blind and what helps, in one sentence; empty when it is not."""
        ...

    def round_trip(self) -> float:
        """Seconds that the last probe took through the whole path."""
        ...

    def reconnects(self) -> int: ...


class Mailbox:
    """What arrived for this node and was not looked at yet: equal signals once, and never more than it can hold."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending: dict[Signal, None] = {}
        self._weight = 0
        self._missed = False
        self._arrived = Latch()

    @property
    def missed(self) -> bool:
        """Whether `MISSED` was put in and not taken yet."""
        return self._missed

    def put(self, signal: Signal) -> None:
        """Never waits, so that it can be called from wherever a signal is heard."""
        if signal not in self._pending:
            self._pending[signal] = None
            self._weight += signal.weight
        if self._weight > MOST_PENDING:
            self._clear()
            self._missed = True
        self._arrived.set()

    def miss(self) -> None:
        """Signals may have been lost: who looks next looks at everything."""
        self._missed = True
        self._arrived.set()

    async def wait(self, until: float) -> list[Signal]:
        """Take what is there, `MISSED` first; wait for it until the monotonic time `until`."""
        if not self._arrived.is_set():
            with anyio.move_on_after(max(0.0, until - self._clock.monotonic())):
                await self._arrived.wait()
        self._arrived = Latch()
        taken = [MISSED, *self._pending] if self._missed else list(self._pending)
        self._clear()
        self._missed = False
        return taken

    def _clear(self) -> None:
        self._pending.clear()
        self._weight = 0


class InProcessSignals:
    """The bus of a hub that is alone: everything it signals it hears itself, at once."""

    def __init__(self, clock: Clock) -> None:
        self._mailbox = Mailbox(clock)

    async def run(self) -> None:
        """There is nothing to carry."""

    def signal(self, node_id: NodeId | None, signal: Signal) -> None:
        self._mailbox.put(signal)

    async def wait(self, until: float) -> list[Signal]:
        return await self._mailbox.wait(until)

    def caught_up(self) -> None:
        """It never loses one but by overflow."""

    def state(self) -> BusState:
        return BusState.HEALTHY

    def trouble(self) -> str:
        return ""

    def round_trip(self) -> float:
        return 0.0

    def reconnects(self) -> int:
        return 0
