"""The only source of time, ids and chance, so that a test can hold all three still."""

from __future__ import annotations

import os
import random
import re
import time
from typing import NewType

Instant = NewType("Instant", int)
"""Microseconds since the Unix epoch, UTC: what the database keeps and what travels in JSON as RFC 3339."""


FETCHED = 256
"""Ids whose random part is fetched from the system at once: each fetch gives the interpreter to another thread."""
_noise: list[bytes] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_noise.clear)


def _sixteen_bytes() -> bytes:
    """Random ones, given to nobody else, whichever thread asks: `pop` is one step of the interpreter."""
    try:
        return _noise.pop()
    except IndexError:
        fetched = os.urandom(16 * FETCHED)
        _noise.extend(fetched[at : at + 16] for at in range(16, len(fetched), 16))
        return fetched[:16]


class Clock:
    """Wall time for people and rows, monotonic time for waiting, ids and chance."""

    _ahead = 0
    """Microseconds by which the database's clock is ahead of this machine's."""

    def now(self) -> Instant:
        return Instant(time.time_ns() // 1_000 + self._ahead)

    def follow(self, told: Instant, asked: float) -> None:
        """Go by the database's clock from now on: it said `told` to a question asked at `asked`, by `monotonic`.

        All hubs then name the same time, and a machine whose clock is wrong neither ends what is not due nor signs
        what nobody accepts. A difference within the question's own time is none.
        """
        took = int((time.monotonic() - asked) * 1_000_000)
        off = told + took // 2 - self.now()
        if abs(off) > took:
            self._ahead += off

    monotonic = staticmethod(time.monotonic)
    """Seconds. Not wrapped: a call asks sixty times."""

    def uuid7(self) -> str:
        """A time-ordered id (RFC 9562, version 7), so that rows made together stand together in an index."""
        milliseconds = time.time_ns() // 1_000_000
        noise = int.from_bytes(_sixteen_bytes()) >> 54
        value = (milliseconds & ((1 << 48) - 1)) << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62
        return _as_text(value | noise & ((1 << 62) - 1))

    def uuid4(self) -> str:
        value = int.from_bytes(_sixteen_bytes()) & ~(0xF << 76 | 0b11 << 62)
        return _as_text(value | 0x4 << 76 | 0b10 << 62)

    def jitter(self, seconds: float) -> float:
        """A random part of `seconds`, between half and all of it: retries of many callers drift apart."""
        return seconds * random.uniform(0.5, 1.0)


SYSTEM = Clock()


_UUID = re.compile("-".join(f"[0-9a-fA-F]{{{digits}}}" for digits in (8, 4, 4, 4, 12)))


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in the one form that we store: 36 characters with dashes, either case."""
    return _UUID.fullmatch(text) is not None


def _as_text(value: int) -> str:
    """A UUID of 128 bits. `uuid.UUID` takes five times as long, and every call makes several."""
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
