"""The only source of time, ids and chance, so that a test can hold all three still."""

from __future__ import annotations

import random
import secrets
import time
import uuid
from typing import NewType

Instant = NewType("Instant", int)
"""Microseconds since the Unix epoch, UTC: what the database keeps and what travels in JSON as RFC 3339."""


class Clock:
    """Wall time for people and rows, monotonic time for waiting, ids and chance."""

    def now(self) -> Instant:
        return Instant(time.time_ns() // 1_000)

    def monotonic(self) -> float:
        return time.monotonic()

    def uuid7(self) -> str:
        """A time-ordered id (RFC 9562, version 7), so that rows made together stand together in an index."""
        milliseconds = time.time_ns() // 1_000_000
        noise = secrets.randbits(74)
        value = (milliseconds & ((1 << 48) - 1)) << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62
        return str(uuid.UUID(int=value | noise & ((1 << 62) - 1)))

    def uuid4(self) -> str:
        return str(uuid.uuid4())

    def jitter(self, seconds: float) -> float:
        """A random part of `seconds`, between half and all of it: retries of many callers drift apart."""
        return seconds * random.uniform(0.5, 1.0)


SYSTEM = Clock()


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in the one form that we store: 36 characters with dashes, either case."""
    if len(text) != 36:
        return False
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
