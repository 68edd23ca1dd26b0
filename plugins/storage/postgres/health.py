"""What the signal bus knows about itself, and says once when it changes."""

from __future__ import annotations

import logging

from kernel import BusState

log = logging.getLogger(__name__)

SLOW = 0.1
"""Seconds for the whole way round above which the bus is slow."""
DEAF = (
    "signals are sent and none arrives: `listen_dsn` must lead to PostgreSQL itself, not through a pooler that lends "
    "its connections out"
)


class Health:
    """Healthy is only what was heard on this very connection, after all that was missed before it was looked at."""

    def __init__(self) -> None:
        self.state = BusState.BLIND
        self.round_trip = 0.0
        self._up = False
        self._lost = ""
        self._deaf = ""
        self._heard = False
        self._behind = True
        self._told = False

    @property
    def trouble(self) -> str:
        """Empty unless it is blind."""
        if self._lost:
            return f"the listener has no connection: {self._lost}"
        if self._deaf:
            return self._deaf
        if not self._up or not self._heard:
            return "the listener is new and has not heard anything yet"
        return "what was signalled while nobody listened is still being looked for" if self._behind else ""

    def listening(self) -> None:
        """On a new connection: what was heard on the former one says nothing about it."""
        self._up = True
        self._lost = ""
        self._heard = False
        self._behind = True
        self._judge()

    def lost(self, reason: str) -> None:
        """`reason` is empty when the bus itself gave the connection up."""
        self._up = self._heard = False
        self._lost = reason
        self._judge()

    def deaf(self, cannot_send: str) -> None:
        """A probe did not come back in time."""
        self._deaf = f"signals cannot be sent: {cannot_send}" if cannot_send else DEAF
        self._heard = False
        self._judge()

    def heard(self, seconds: float) -> None:
        """A probe came back after so long."""
        self.round_trip = seconds
        self._deaf = ""
        self._heard = True
        self._judge()

    def caught_up(self) -> None:
        self._behind = False
        self._judge()

    def _judge(self) -> None:
        if self.trouble:
            self._blind()
            return
        state = BusState.SLOW if self.round_trip > SLOW else BusState.HEALTHY
        if state is not self.state:
            log.info("the signal bus is %s: a signal takes %.1f ms", state, self.round_trip * 1_000)
        self.state = state
        self._told = False

    def _blind(self) -> None:
        """A bus that is just being opened is blind without a complaint."""
        self.state = BusState.BLIND
        if not self._told and (self._lost or self._deaf):
            log.warning("the signal bus is blind, work is found by polling: %s", self.trouble)
            self._told = True
