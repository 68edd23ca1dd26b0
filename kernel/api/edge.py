"""What the edge is given of a running hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from kernel.api.limits import Limits
from kernel.clock import Clock
from kernel.config.settings import Settings
from kernel.directs import Directs
from kernel.dispatch import Dispatcher
from kernel.hooks import Hooks
from kernel.host import Host
from kernel.links import Links
from kernel.loader import PluginRow
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.reports import Reports
from kernel.storage import Storage


class Readiness(Protocol):
    """Says what keeps this hub from being ready."""

    async def faults(self) -> Mapping[str, str]: ...

    @property
    def bus(self) -> str:
        """The state of the signal bus."""
        ...


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that resources need; `hub.py` fills it in."""

    host: Host
    hooks: Hooks
    dispatcher: Dispatcher
    notices: Notices
    observer: Observer
    links: Links
    directs: Directs
    reports: Reports
    readiness: Readiness
    plugins: Callable[[], list[PluginRow]]
    """The rows of `GET /plugins`."""

    @property
    def storage(self) -> Storage:
        return self.host.storage

    @property
    def settings(self) -> Settings:
        return self.host.settings

    @property
    def clock(self) -> Clock:
        return self.host.clock

    def limits(self) -> Limits:
        return Limits(self.clock, self.settings.limits)
