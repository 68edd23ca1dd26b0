"""The storage plugin for one hub: one SQLite file, nothing to install."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from kernel import Finding, SchemaState, Settings, Storage, hookimpl

if TYPE_CHECKING:
    from plugins.storage.sqlite.opening import Options
from plugins.storage.sqlite.files import Synchronous


class SqliteConfig(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    """The file; its directory is made. Relative to the working directory."""
    synchronous: Synchronous = "FULL"
    """NORMAL is faster and not durable: a power cut may lose what was acknowledged last."""


class Plugin:
    name = "sqlite"
    api = 1
    Config = SqliteConfig

    def __init__(self, config: SqliteConfig) -> None:
        self._config = config

    @hookimpl
    async def open_storage(self, config: Settings) -> Storage:
        """Raises: Misconfigured."""
        from plugins.storage.sqlite.opening import opened
        from plugins.storage.sqlite.storage import SqliteStorage

        return SqliteStorage(await opened(self._options(config)))

    @hookimpl
    async def check_storage(self) -> SchemaState:
        """Raises: Misconfigured."""
        from plugins.storage.sqlite.opening import schema_of

        return await anyio.to_thread.run_sync(schema_of, self._config.path)

    @hookimpl
    async def diagnose(self, config: Settings) -> list[Finding]:
        from plugins.storage.sqlite.diagnosing import diagnosed

        return await anyio.to_thread.run_sync(diagnosed, self._config.path, config)

    def _options(self, settings: Settings) -> Options:
        from plugins.storage.sqlite.opening import Options

        return Options(
            path=self._config.path,
            synchronous=self._config.synchronous,
            deadline=settings.server.database_deadline,
            lost_after=settings.node.lost_after,
            stale_after=settings.channel.stale_after,
        )
