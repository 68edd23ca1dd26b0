"""What a look at a configuration finds before a hub is started with it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["Finding", "Level"]


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    """A hub starts, and something is weaker than it should be."""
    FAIL = "fail"
    """No hub starts, or none gets ready."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: str
    """Its name, in a word or two."""
    level: Level = Level.OK
    told: str = ""
    """What was found."""
    fix: str = ""
    """What to change; empty when nothing has to be."""

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.told}: {self.fix}" if self.fix else self.told
