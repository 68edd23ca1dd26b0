"""What this node ended in the last minutes: all that is left of an end when the database loses it."""

from __future__ import annotations

import msgspec

from kernel.broker import Session
from kernel.clock import Clock
from kernel.intent import Intent, IntentId, Op
from kernel.storage import End, NewIntent

SPAN = 300.0
"""Seconds for which an end is remembered; a database that lost more is a restored backup."""
MOST = 20_000
MOST_BYTES = 64 * 1024 * 1024
FAR = 10 * 365 * 86_400.0
"""Seconds beyond any deadline."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """An end as it was written, and what would bring its row back."""

    end: End
    plan: NewIntent | None
    intent: Intent
    at: float
    size: int

    def recording(self) -> NewIntent | None:
        return self.plan or as_recorded(self.intent)


class Remembered:
    """Bounded by time, number and size: the oldest go first, and what is forgotten is driven again by its row."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._endings: dict[IntentId, Ending] = {}
        self._bytes = 0

    def keep(self, end: End, intent: Intent, plan: NewIntent | None, size: int) -> None:
        """`size` is that of the broker's answer."""
        self.forget(end.intent_id)
        at = self._clock.monotonic()
        self._endings[end.intent_id] = Ending(end=end, plan=plan, intent=intent, at=at, size=size)
        self._bytes += size
        while self._too_many(at - SPAN):
            self.forget(next(iter(self._endings)))

    def _too_many(self, since: float) -> bool:
        oldest = next(iter(self._endings.values()), None)
        if oldest is None:
            return False
        return oldest.at < since or len(self._endings) > MOST or self._bytes > MOST_BYTES

    def forget(self, intent_id: IntentId) -> None:
        ending = self._endings.pop(intent_id, None)
        self._bytes -= ending.size if ending else 0

    def find(self, intent_id: IntentId) -> Ending | None:
        return self._endings.get(intent_id)

    def of(self, session: Session) -> list[Ending]:
        """In the order in which they were written."""
        return [ending for ending in self._endings.values() if ending.end.session == session]


_SHARED = frozenset(Intent.__struct_fields__) & frozenset(NewIntent.__struct_fields__)


def as_recorded(intent: Intent) -> NewIntent | None:
    """What would record it again should its row be lost. None of a message: its words stand in its row alone."""
    if intent.op is Op.MESSAGE:
        return None
    return NewIntent(**{name: getattr(intent, name) for name in _SHARED}, deadline_in=FAR)
