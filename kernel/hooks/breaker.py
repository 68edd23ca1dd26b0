"""Counts what plugins cost and break, and switches off one that breaks too much."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from kernel.config.settings import BreakerSettings

log = logging.getLogger(__name__)

QUIET = 10.0
"""Seconds between two lines in the log about one hook of one plugin."""


class Voice:
    """One plugin's implementation of one hook, with its account. Slots: this is read on every call."""

    __slots__ = ("call", "calls", "faults", "hook", "last_fault", "logged_at", "needed", "plugin", "seconds")

    def __init__(self, plugin: str, hook: str, call: Callable[..., Any], *, needed: bool) -> None:
        self.plugin = plugin
        self.hook = hook
        self.call = call
        self.needed = needed
        self.calls = 0
        self.seconds = 0.0
        self.faults = 0
        self.last_fault = ""
        self.logged_at = float("-inf")

    def spent(self, seconds: float) -> None:
        self.calls += 1
        self.seconds += seconds


class Stat(msgspec.Struct, frozen=True, kw_only=True):
    """What one hook of one plugin has cost so far."""

    plugin: str
    hook: str
    calls: int
    seconds: float
    faults: int
    last_fault: str
    switched_off: bool


class Breaker:
    """`faults` faults of one plugin within `within` seconds trip it: `tripped` is told its name, once."""

    def __init__(self, settings: BreakerSettings, monotonic: Callable[[], float]) -> None:
        self.settings = settings
        self.off: dict[str, str] = {}
        """Plugin → why it was switched off."""
        self.tripped: Callable[[str], None] = lambda _: None
        self._monotonic = monotonic
        self._recent: dict[str, deque[float]] = {}

    def fault(self, voice: Voice, told: str, cause: BaseException | None = None) -> None:
        """`voice` did what `told` says, for instance "raised ValueError: …"."""
        now = self._monotonic()
        voice.faults += 1
        voice.last_fault = told
        if now - voice.logged_at >= QUIET:
            voice.logged_at = now
            log.warning("plugin %s %s in %s", voice.plugin, told, voice.hook, exc_info=cause)
        if voice.needed or voice.plugin in self.off:
            return
        recent = self._recent.setdefault(voice.plugin, deque(maxlen=self.settings.faults))
        recent.append(now)
        if len(recent) == self.settings.faults and now - recent[0] <= self.settings.within:
            self._trip(voice, told)

    def _trip(self, voice: Voice, told: str) -> None:
        settings = self.settings
        why = f"{settings.faults} faults within {settings.within:g} s; the last: {told} in {voice.hook}"
        self.off[voice.plugin] = why
        log.error("plugin %s is switched off until the next start: %s", voice.plugin, why)
        self.tripped(voice.plugin)
