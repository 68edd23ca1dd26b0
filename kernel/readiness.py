"""Whether this hub may be sent requests, and if not, what fails."""

from __future__ import annotations

import anyio

from kernel.errors import PointsmanError
from kernel.pulse import Pulse
from kernel.signals import BusState, Signals
from kernel.storage import Storage

LOOK = 0.05
"""Seconds between two looks at whether a hub that starts is ready."""


class Readiness:
    """Asked by `/readyz`. A hub that cannot reach its database, or hears nothing, is not ready."""

    def __init__(self, *, storage: Storage, pulse: Pulse, signals: Signals) -> None:
        self._storage = storage
        self._pulse = pulse
        self._signals = signals
        self.draining = False

    async def reached(self) -> None:
        """Until nothing fails any more."""
        while await self.faults():
            await anyio.sleep(LOOK)

    @property
    def bus(self) -> BusState:
        return self._signals.state()

    async def faults(self) -> dict[str, str]:
        """What fails, with why; empty when the hub is ready."""
        found: dict[str, str] = {}
        if self.draining:
            found["draining"] = "this hub is stopping"
        try:
            await self._storage.ping()
        except PointsmanError as fault:
            found["database"] = fault.message
        if not self._pulse.steady:
            found["node"] = "this hub's own beat is late: it may have been judged lost"
        if self._signals.state() is BusState.BLIND:
            found["bus"] = self._signals.trouble() or "the listener hears nothing"
        return found
