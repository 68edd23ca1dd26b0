"""Counts what an address or a caller did lately, in bounded room, and says when to come back."""

from __future__ import annotations

from collections import OrderedDict, deque

from kernel.clock import Clock
from kernel.config.quantity import Rate
from kernel.config.settings import LimitSettings
from kernel.errors import RateLimited

MOST_NAMES = 10_000
"""Addresses and callers remembered at once; past it the one that was quiet longest is forgotten."""


class Recent:
    """At most `count` events of one name in any `seconds`."""

    def __init__(self, clock: Clock, count: int, seconds: float) -> None:
        self._clock = clock
        self._count = count
        self._seconds = seconds
        self._names: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, name: str) -> None:
        """Raises: RateLimited when `name` has used up what it may do now."""
        times = self._names.get(name)
        if times is None or len(times) < self._count:
            return
        left = times[0] + self._seconds - self._clock.monotonic()
        if left > 0:
            told = f"more than {self._count} within {self._seconds:g} s: wait {left:.1f} s"
            raise RateLimited(told, retry_after=left)

    def note(self, name: str) -> None:
        now = self._clock.monotonic()
        times = self._names.setdefault(name, deque(maxlen=self._count))
        while times and times[0] + self._seconds <= now:
            times.popleft()
        times.append(now)
        self._names.move_to_end(name)
        if len(self._names) > MOST_NAMES:
            self._names.popitem(last=False)


class Limits:
    """Every limit of the edge (design/contract.md, Edge): failures weigh more than what went well."""

    def __init__(self, clock: Clock, settings: LimitSettings) -> None:
        def recent(rate: Rate) -> Recent:
            return Recent(clock, rate.count, rate.seconds)

        self.failed_joins = recent(settings.failed_joins)
        self.failed_upgrades = recent(settings.failed_upgrades)
        self.joins = recent(settings.joins)
        self.upgrades = recent(settings.upgrades)
        self.requests = recent(settings.requests)
