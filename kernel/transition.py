"""The facts announced after each step of an intent's life."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.clock import Instant
from kernel.intent import IntentId, Op

ACCEPTED = "accepted"
ROUTED = "routed"
REFUSED = "refused"
"""Words for `from_state` and `to_state` beyond those of `State`: what happens before a row exists."""


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One arrow of design/dispatch.md section 5: durable before anybody hears of it, except `refused`."""

    intent_id: IntentId
    op: Op
    n: int
    """Counts the steps of one intent from 1."""
    at: Instant
    from_state: str
    to_state: str
    reason: str
    """A short code: `recorded`, `claimed`, `answered`, `later`, `link_lost`, `owner_lost`, `deadline`, …"""
    node_id: str
    epoch: int | None = None
    attempt: int | None = None
    seconds: float = 0.0
    """How long the intent stood in `from_state`."""
    detail: dict[str, Any] = {}
