"""The behaviour that every storage backend must show, as classes: subclass each and give it the fixture `storage`."""

from __future__ import annotations

from kernel.testing.storage.agents import AgentContract, ReportContract
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.ends import AgentChangeContract, EndContract, LocalContract
from kernel.testing.storage.expiry import CancelContract, ExpiryContract
from kernel.testing.storage.lanes import LaneContract
from kernel.testing.storage.lists import HistoryContract, InboxContract, ListContract, PruningContract
from kernel.testing.storage.places import BrokerContract, PlatformContract, ProjectContract
from kernel.testing.storage.recording import RecordingContract
from kernel.testing.storage.recovery import RecoveryContract
from kernel.testing.storage.sessions import PoisonContract, SessionContract
from kernel.testing.storage.world import World

CONTRACTS: tuple[type[StorageContract], ...] = (
    AgentChangeContract,
    AgentContract,
    BrokerContract,
    CancelContract,
    EndContract,
    ExpiryContract,
    HistoryContract,
    InboxContract,
    LaneContract,
    ListContract,
    LocalContract,
    PlatformContract,
    PoisonContract,
    ProjectContract,
    PruningContract,
    RecordingContract,
    RecoveryContract,
    ReportContract,
    SessionContract,
)
"""All of them: `tests/contract` makes sure that a backend of ours leaves none out."""

__all__ = [
    "CONTRACTS",
    "AgentChangeContract",
    "AgentContract",
    "BrokerContract",
    "CancelContract",
    "EndContract",
    "ExpiryContract",
    "HistoryContract",
    "InboxContract",
    "LaneContract",
    "ListContract",
    "LocalContract",
    "PlatformContract",
    "PoisonContract",
    "ProjectContract",
    "PruningContract",
    "RecordingContract",
    "RecoveryContract",
    "ReportContract",
    "SessionContract",
    "StorageContract",
    "World",
]
