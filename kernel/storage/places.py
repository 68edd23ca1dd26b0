"""What a backend is asked about sessions, agents, brokers and projects, and what it answers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from kernel.agent import Agent, AgentId
from kernel.broker import Broker, BrokerId, Kind, Session, SessionId
from kernel.clock import Instant
from kernel.intent import Lane
from kernel.node import NodeId
from kernel.project import Project
from kernel.storage.intents import Changed, IdempotencyKey

# -- sessions -----------------------------------------------------------------------------------------------


class SessionClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A socket was accepted: the newest always wins. One of kind `direct` wins only what nobody holds."""

    broker_id: BrokerId
    node_id: NodeId
    session_id: SessionId
    kind: Kind = "socket"
    last_epoch: int = 0
    """The highest epoch that the broker has seen: the row's epoch grows beyond both."""
    instance: str | None = None
    version: str | None = None
    capabilities: tuple[str, ...] = ()
    window: int | None = None


class SessionClaimed(msgspec.Struct, frozen=True, kw_only=True):
    session: Session
    broker: Broker
    former: Session | None
    """Who held it before: to be signalled, so that it closes its socket."""
    former_instance: str | None = None
    """The broker's process that claimed last, on whichever node."""
    redriven: Changed
    """What older epochs left `in_progress`, now `pending`; and what was poison, now `failed`."""


class Released(msgspec.Struct, frozen=True, kw_only=True):
    cleared: bool
    """False: the row names another session; nothing was written, and nobody is told that the broker left."""
    changed: Changed = Changed()


class Reaped(msgspec.Struct, frozen=True, kw_only=True):
    lost_nodes: tuple[NodeId, ...] = ()
    cleared: tuple[BrokerId, ...] = ()
    changed: Changed = Changed()


# -- agents, brokers, projects ------------------------------------------------------------------------------


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """All that a call about an agent must know, read in one statement."""

    agent: Agent
    project: Project
    broker: Broker | None
    waiting: frozenset[Lane]
    """Lanes of this agent that hold unfinished intents in the database."""


class AgentFilter(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str | None = None
    runtime_broker_id: str | None = None
    slug: str | None = None
    phase: str | None = None
    include_deleted: bool = False


class AgentEdit(msgspec.Struct, frozen=True, kw_only=True):
    """PATCH: None leaves a field alone. `state_version` None does not compare."""

    agent_id: AgentId
    state_version: int | None = None
    name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    task_summary: str | None = None
    config: dict[str, Any] | None = None


class ReportOutcome(msgspec.Struct, frozen=True, kw_only=True):
    agent: Agent | None
    """None: no such agent."""
    changed: bool
    run_unknown: bool = False
    """The report names a run that the row does not: ended, or not stored yet."""


class BrokerRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """A broker and the join token that it is given; a known id or name is registered again by its owner."""

    broker_id: BrokerId
    name: str
    slug: str
    auto_provide: bool = False
    labels: dict[str, str] = {}
    endpoint: str | None = None
    """Its own HTTP address; None leaves what it had."""
    created_by: str
    by_admin: bool = False
    token_id: str
    token_hash: str
    token_lives: float
    key: IdempotencyKey | None = None
    sealed_token: bytes = b""
    """Kept with the key, as long as that."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    broker: Broker
    expires_at: Instant
    reregistered: bool
    sealed_token: bytes | None = None
    """The key was used before: the token that was given then."""


class BrokerJoin(msgspec.Struct, frozen=True, kw_only=True):
    broker_id: BrokerId
    token_hash: str
    key_id: str
    sealed: bytes
    version: str | None = None
    capabilities: tuple[str, ...] = ()


class BrokerEdit(msgspec.Struct, frozen=True, kw_only=True):
    broker_id: BrokerId
    paused: bool | None = None
    conflict: bool | None = None
    name: str | None = None
    labels: dict[str, str] | None = None
    auto_provide: bool | None = None
    endpoint: str | None = None
    """An empty one takes it away. A session over HTTP that uses another is cleared."""
    heartbeat: bool = False
    """Stamp `last_heartbeat`; it never makes the broker online."""


class ProjectEdit(msgspec.Struct, frozen=True, kw_only=True):
    """None leaves a value as it is."""

    project_id: str
    name: str | None = None
    git_remote: str | None = None
    default_runtime_broker_id: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    visibility: str | None = None


class SealedSecret(msgspec.Struct, frozen=True, kw_only=True):
    key_id: str
    sealed: bytes


class User(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    email: str
    display_name: str
    role: Literal["admin", "member", "viewer"]


class SchemaState(msgspec.Struct, frozen=True, kw_only=True):
    """Which schema a database has, and which this program reads and writes."""

    found: str | None
    """None: none yet."""
    wanted: str
    known: bool
    """False: a later version of this program wrote it."""
