"""What the kernel asks of a storage backend: named operations, each one transaction.

Instants in answers are the database's. Spans in questions are seconds, added to the database's own now, so that no
hub's wall clock decides anything. An operation that changes an intent's state writes the transition in the same
transaction and returns it. Whoever calls twice with the same argument after a broken connection gets the same end.

Every operation may raise `StorageUnavailable`; other failures are named where they occur.
"""

from __future__ import annotations

from kernel.storage.contract import Agents, Brokers, Intents, Nodes, Projects, Sessions, Sql, Storage
from kernel.storage.intents import (
    Cancelled,
    Changed,
    ClaimRequest,
    Claims,
    End,
    Era,
    Held,
    IdempotencyKey,
    IntentFilter,
    Known,
    LaneView,
    NewIntent,
    Progress,
    PutBack,
    Recorded,
    Recording,
    Recovered,
    Repeated,
    Settled,
    Unfinished,
)
from kernel.storage.pages import Keyset, Page
from kernel.storage.places import (
    AgentEdit,
    AgentFilter,
    AgentView,
    BrokerEdit,
    BrokerJoin,
    BrokerRegistration,
    ProjectEdit,
    Reaped,
    Registered,
    Released,
    ReportOutcome,
    SchemaState,
    SealedSecret,
    SessionClaim,
    SessionClaimed,
    User,
)

__all__ = [
    "AgentEdit",
    "AgentFilter",
    "AgentView",
    "Agents",
    "BrokerEdit",
    "BrokerJoin",
    "BrokerRegistration",
    "Brokers",
    "Cancelled",
    "Changed",
    "ClaimRequest",
    "Claims",
    "End",
    "Era",
    "Held",
    "IdempotencyKey",
    "IntentFilter",
    "Intents",
    "Keyset",
    "Known",
    "LaneView",
    "NewIntent",
    "Nodes",
    "Page",
    "Progress",
    "ProjectEdit",
    "Projects",
    "PutBack",
    "Reaped",
    "Recorded",
    "Recording",
    "Recovered",
    "Registered",
    "Released",
    "Repeated",
    "ReportOutcome",
    "SchemaState",
    "SealedSecret",
    "SessionClaim",
    "SessionClaimed",
    "Sessions",
    "Settled",
    "Sql",
    "Storage",
    "Unfinished",
    "User",
]
