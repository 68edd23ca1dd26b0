"""Instants as they travel: RFC 3339 UTC with microseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kernel.clock import Instant

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def written(instant: Instant) -> str:
    moment = _EPOCH + timedelta(microseconds=instant)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def read(text: str) -> Instant:
    """Raises: ValueError when `text` is no RFC 3339 time with an offset."""
    if len(text) < 20 or text[10] not in "Tt ":
        raise ValueError("expected an RFC 3339 time such as 2026-11-25T09:30:00Z")
    moment = datetime.fromisoformat(text.upper())
    if moment.tzinfo is None:
        raise ValueError("expected an RFC 3339 time with its offset, such as 2026-11-25T09:30:00Z")
    return Instant((moment - _EPOCH) // timedelta(microseconds=1))
