"""How a caller wants to be served: `Prefer`, `X-Dispatch-Deadline`, `Idempotency-Key`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from kernel.api import instants
from kernel.clock import Instant
from kernel.errors import Invalid
from kernel.storage import IdempotencyKey

LONGEST_WAIT = 600
LONGEST_KEY = 255
MOST_AHEAD = 10 * 365 * 86_400
"""Seconds: no deadline is further away than the clock's own arithmetic allows."""


class Preferences(msgspec.Struct, frozen=True, kw_only=True):
    """What the headers of one call ask for; None is the operation's own default."""

    wait: float | None = None
    """Seconds; 0 answers as soon as the call is durable."""
    deliver: Literal["now", "hold"] | None = None
    deadline_in: float | None = None
    deadline_at: Instant | None = None


def preferences_of(headers: Mapping[str, str]) -> Preferences:
    """Raises: Invalid, naming every header that cannot be followed."""
    bad: dict[str, str] = {}
    asked = _preferred(headers.get("prefer", ""))
    deadline_in, deadline_at = None, None
    if text := headers.get("x-dispatch-deadline"):
        try:
            deadline_in, deadline_at = _deadline(text.strip())
        except ValueError as fault:
            bad["X-Dispatch-Deadline"] = str(fault)
    wait = 0.0 if "respond-async" in asked else None
    if "wait" in asked:
        wait = _wait(asked["wait"])
        if wait is None:
            bad["Prefer"] = f"expected wait=N with N from 0 to {LONGEST_WAIT} seconds, found wait={asked['wait']}"
    deliver = asked.get("deliver")
    if deliver not in (None, "now", "hold"):
        bad["Prefer"] = f"expected deliver=now or deliver=hold, found deliver={deliver}"
    if bad:
        raise Invalid(fields=bad)
    return Preferences(wait=wait, deliver=deliver, deadline_in=deadline_in, deadline_at=deadline_at)  # type: ignore[arg-type]


def _preferred(header: str) -> dict[str, str]:
    """RFC 7240: of a preference named twice the first counts, and what nobody knows is ignored."""
    asked: dict[str, str] = {}
    for part in header.split(","):
        name, _, value = part.partition(";")[0].partition("=")
        asked.setdefault(name.strip().lower(), value.strip().strip('"').lower())
    return asked


def _wait(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and int(text) <= LONGEST_WAIT else None


def _deadline(text: str) -> tuple[float | None, Instant | None]:
    try:
        seconds = float(text)
    except ValueError:
        return None, instants.read(text)
    if not 0 < seconds <= MOST_AHEAD:
        raise ValueError(f"expected seconds from now, more than 0, found {text}")
    return seconds, None


def key_of(headers: Mapping[str, str], principal: str, method: str, path: str, body: bytes) -> IdempotencyKey | None:
    """The caller's key with the hash of what it is used for. Raises: Invalid."""
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise Invalid(fields={"Idempotency-Key": f"expected 1 to {LONGEST_KEY} printable characters"})
    said = b"\n".join((method.encode(), path.encode(), body))
    return IdempotencyKey(principal=principal, key=key, request_hash=hashlib.sha256(said).hexdigest())
