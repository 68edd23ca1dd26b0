"""A runtime broker: the far program that runs agents, and the session by which one node holds it."""

from __future__ import annotations

import ipaddress
from typing import Literal, NewType
from urllib.parse import urlsplit

import msgspec

from kernel.clock import Instant

BrokerId = NewType("BrokerId", str)
SessionId = NewType("SessionId", str)
Epoch = NewType("Epoch", int)
"""Grows with every claim of a broker's session: the fencing token."""

Kind = Literal["socket", "direct"]
LONGEST_ENDPOINT = 300


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
    """Its own HTTP address, where a hub calls it while nobody holds its socket."""
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


def endpoint_problem(url: str) -> str | None:
    """Why a hub would not call this address; None when it would. Where it leads to is for the broker's owner to say,
    so that only `http` and `https` are spoken, and never to addresses at which machines hold their own secrets."""
    wanted = "expected an address as https://broker.example:9810, without a path"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return wanted
    if parts.scheme not in ("http", "https") or not host or len(url) > LONGEST_ENDPOINT or not url.isascii():
        return wanted
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc or not url.isprintable():
        return wanted
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return f"expected the broker's own address; {host} is none that a broker has"
    return None


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `project_contributors`: this broker may run this project's agents."""

    project_id: str
    broker_id: BrokerId
    broker_name: str
    linked_by: str | None = None
    linked_at: Instant = Instant(0)
