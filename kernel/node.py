"""Who this replica is: one hub process, alive as long as it beats."""

from __future__ import annotations

from typing import NewType

import msgspec

from kernel.clock import Instant

NodeId = NewType("NodeId", str)
"""A UUID made at boot, never configured, never derived from a host name."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `hub_nodes`."""

    id: NodeId
    started_at: Instant
    beat_at: Instant
    version: str
    draining: bool = False
    lost_at: Instant | None = None
    silent_for: float = 0.0
    """Seconds since its last beat, by the database's clock when it was read."""
