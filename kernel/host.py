"""What a plugin gets of the hub that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from kernel.clock import Clock
from kernel.keyring import Keyring
from kernel.node import NodeId
from kernel.storage import Storage

if TYPE_CHECKING:
    from kernel.config import Settings


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """Levels that are read when somebody scrapes, not counted as they change."""

    links: int
    bus_state: str
    bus_reconnects: int
    bus_roundtrip: float
    unfinished: dict[tuple[str, str], int]
    """By (op, state)."""
    stuck_messages: int
    late_ends: int
    conflicts: int
    """Brokers whose identity two processes were found to use by turns."""
    untold: int
    """Transitions and measures that came faster than exporters took them."""
    links_closed: dict[int, int]
    """By close code."""
    links_refused: dict[int, int]
    """By HTTP status."""
    storage_batch: float
    """How many transactions the last commit held."""
    plugin_seconds: dict[tuple[str, str], tuple[int, float]]
    """(plugin, hook) → calls, seconds in all."""
    plugin_faults: dict[tuple[str, str], int]


class Host(Protocol):
    """A running hub, as its plugins see it."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def keyring(self) -> Keyring: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def gauges(self) -> Gauges:
        """Levels of this moment; those of the storage as of the last look."""
        ...

    async def look(self) -> None:
        """Read anew what the gauges tell of the storage, at most once a second."""
        ...

    def address(self) -> str:
        """The hub's own URL, for those who must tell others where it is."""
        ...
