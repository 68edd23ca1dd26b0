"""A runtime broker: the far program that runs agents, and the session by which one node holds it."""

from __future__ import annotations

from typing import Literal, NewType

import msgspec

from kernel.clock import Instant

BrokerId = NewType("BrokerId", str)
SessionId = NewType("SessionId", str)
Epoch = NewType("Epoch", int)
"""Grows with every claim of a broker's session: the fencing token."""

Kind = Literal["socket", "direct"]


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One claim of one broker by one node: what every write that matters is fenced with."""

    broker_id: BrokerId
    node_id: str
    session_id: SessionId
    epoch: Epoch


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `runtime_brokers`; `online` and `held` were computed by the database when it was read."""

    id: BrokerId
    name: str
    slug: str
    version: str | None = None
    capabilities: list[str] = []
    labels: dict[str, str] = {}
    auto_provide: bool = False
    endpoint: str | None = None
    created_by: str | None = None
    created: Instant = Instant(0)
    updated: Instant = Instant(0)
    paused: bool = False
    conflict: bool = False
    last_heartbeat: Instant | None = None
    connected_hub_id: str | None = None
    connected_session_id: str | None = None
    connected_at: Instant | None = None
    connection_epoch: int = 0
    connection_kind: Kind | None = None
    renewed_at: Instant | None = None
    disconnected_at: Instant | None = None
    disconnect_code: int | None = None
    instance: str | None = None
    window: int | None = None
    lock_version: int = 0
    deleted_at: Instant | None = None
    online: bool = False
    """A live node holds its socket and renewed it lately."""
    missing_for: float | None = None
    """Seconds since it was last held by anybody; None while held, or when it never was."""

    def can(self, capability: str) -> bool:
        return capability in self.capabilities

    @property
    def left_orderly(self) -> bool:
        return self.disconnect_code == 1000


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `project_contributors`: this broker may run this project's agents."""

    project_id: str
    broker_id: BrokerId
    broker_name: str
    linked_by: str | None = None
    linked_at: Instant = Instant(0)
