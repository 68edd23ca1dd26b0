"""The storage plugin for any number of hubs: one PostgreSQL, 15 or newer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from kernel import Duration, Finding, NodeId, SchemaState, Settings, Storage, hookimpl

if TYPE_CHECKING:
    from plugins.storage.postgres.connecting import Target


class PostgresConfig(msgspec.Struct, frozen=True, kw_only=True):
    dsn: str
    """postgresql://USER:PASSWORD@HOST:5432/DATABASE; further hosts after a comma, libpq's parameters at the end."""
    listen_dsn: str | None = None
    """A direct way to the same database, where `dsn` leads through a pooler: LISTEN does not survive one."""
    statement_cache_size: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1_024
    """Prepared statements that a connection keeps; 0 behind a pooler in transaction mode."""
    patience: Duration = 30.0
    """A start waits so long for a server that does not answer yet."""


class Plugin:
    name = "postgres"
    api = 1
    Config = PostgresConfig

    def __init__(self, config: PostgresConfig) -> None:
        self._config = config

    @hookimpl
    async def open_storage(self, config: Settings, node_id: NodeId) -> Storage:
        """Raises: Misconfigured."""
        from plugins.storage.postgres.opening import opened

        return await opened(self._target(config), config, node_id)

    @hookimpl
    async def check_storage(self, config: Settings) -> SchemaState:
        """Raises: Misconfigured."""
        from plugins.storage.postgres.opening import schema_of

        return await schema_of(self._target(config))

    @hookimpl
    async def diagnose(self, config: Settings) -> list[Finding]:
        from plugins.storage.postgres.diagnosing import diagnosed

        return await diagnosed(self._target(config), config)

    def _target(self, settings: Settings) -> Target:
        from plugins.storage.postgres.connecting import Target

        return Target(
            dsn=self._config.dsn,
            listen_dsn=self._config.listen_dsn,
            statement_cache_size=self._config.statement_cache_size,
            deadline=settings.server.database_deadline,
            patience=self._config.patience,
        )
