"""Every setting of the kernel and its default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from kernel.config.document import Table, Where, document_of
from kernel.config.quantity import Duration, Rate, Size, duration_text


class DispatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    http_wait: Duration = 50.0
    rolling_window: Duration = 90.0
    deadline: Duration = 900.0
    message_ttl: Duration = 86_400.0
    now_ttl: Duration = 30.0
    window: int = 64
    message_attempts: int = 3
    retention: Duration = 604_800.0
    durability: Literal["intents", "all"] = "intents"
    reconnect_grace: Duration = 5.0


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    beat: Duration = 2.0
    lost_after: Duration = 6.0
    grace: Duration = 12.0
    drain: Duration = 30.0


class BusSettings(msgspec.Struct, frozen=True, kw_only=True):
    probe: Duration = 5.0
    poll_healthy: Duration = 2.0
    poll_slow: Duration = 0.25
    poll_blind: Duration = 0.1
    rekick: tuple[Duration, ...] = (0.05, 0.2, 0.8)


class ChannelSettings(msgspec.Struct, frozen=True, kw_only=True):
    ping: Duration = 10.0
    dead_after: Duration = 25.0
    stock_window: int = 16
    stock_frame_limit: Size = 65_536
    stock_claims: Rate = Rate(count=5, seconds=10.0)
    claims: Rate = Rate(count=30, seconds=10.0)
    renew: Duration = 5.0
    stale_after: Duration = 15.0
    send_deadline: Duration = 10.0
    handshake: Duration = 30.0
    frame_limit: Size = 1_048_576
    direct_idle: Duration = 30.0


class SweepSettings(msgspec.Struct, frozen=True, kw_only=True):
    nodes: Duration = 2.0
    stuck: Duration = 15.0
    messages: Duration = 60.0
    history: Duration = 3_600.0


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8080
    body_limit: Size = 1_048_576
    head_limit: Size = 65_536
    head_deadline: Duration = 10.0
    database_deadline: Duration = 5.0
    proxy_timeout: Duration = 60.0
    public_metrics: bool = True


class StorageSettings(msgspec.Struct, frozen=True, kw_only=True):
    pool_min: int = 2
    pool_max: int = 20
    pool_idle: Duration = 300.0
    pool_lifetime: Duration = 1_800.0


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True):
    failed_joins: Rate = Rate(count=20, seconds=60.0)
    failed_upgrades: Rate = Rate(count=60, seconds=60.0)
    joins: Rate = Rate(count=600, seconds=60.0)
    upgrades: Rate = Rate(count=600, seconds=60.0)
    requests: Rate = Rate(count=1_000, seconds=1.0)


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True):
    faults: int = 5
    within: Duration = 60.0
    slow: Duration = 0.1
    deadline: Duration = 5.0


class PluginEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line under `plugins:`. Its `config` stays a document until the plugin says what it expects."""

    use: str
    enabled: bool = True
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    config: Table = Table(entries={}, keys={}, where=Where(source="code"))
    where: Where = Where(source="code")
    neighbours: dict[str, Where] = {}
    """Where each name of `before` and `after` stands."""

    @classmethod
    def of(cls, use: str, config: dict[str, object] | None = None, **more: object) -> PluginEntry:
        """An entry that no file holds."""
        table = document_of(config or {}, Where(source=use))
        assert isinstance(table, Table)
        return msgspec.structs.replace(cls(use=use, config=table, where=Where(source=use)), **more)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration. `Settings()` is all defaults and no plugins."""

    dispatch: DispatchSettings = DispatchSettings()
    node: NodeSettings = NodeSettings()
    bus: BusSettings = BusSettings()
    channel: ChannelSettings = ChannelSettings()
    sweep: SweepSettings = SweepSettings()
    server: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    limits: LimitSettings = LimitSettings()
    breaker: BreakerSettings = BreakerSettings()
    plugins: tuple[PluginEntry, ...] = ()


COUNTS = (
    "dispatch.window",
    "dispatch.message_attempts",
    "channel.stock_window",
    "storage.pool_max",
    "breaker.faults",
)
"""Settings of which there must be at least one."""


def contradictions(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys and a complaint, told at the first of them: values that are well-formed, but not together."""
    channel, dispatch, server = settings.channel, settings.dispatch, settings.server
    node, storage = settings.node, settings.storage
    ordered = [
        ("channel.ping", channel.ping, "channel.dead_after", channel.dead_after),
        ("channel.renew × 2", channel.renew * 2, "channel.stale_after", channel.stale_after),
        ("dispatch.http_wait", dispatch.http_wait, "dispatch.rolling_window", dispatch.rolling_window),
        ("dispatch.rolling_window", dispatch.rolling_window, "dispatch.deadline", dispatch.deadline),
        ("dispatch.http_wait", dispatch.http_wait, "server.proxy_timeout", server.proxy_timeout),
        ("node.beat × 2", node.beat * 2, "node.lost_after", node.lost_after),
    ]
    for small, low, large, high in ordered:
        if not low < high:
            told = f"expected {small} to be less than {large}, found {duration_text(low)} and {duration_text(high)}"
            key = small.partition(" ")[0]
            yield (key, large), f"{told}: lower {key} or raise {large}"
    if storage.pool_min > storage.pool_max:
        told = f"expected at most storage.pool_max ({storage.pool_max}), found {storage.pool_min}"
        yield ("storage.pool_min", "storage.pool_max"), told
    for key in COUNTS:
        section, _, name = key.partition(".")
        if getattr(getattr(settings, section), name) < 1:
            yield (key,), f"expected 1 or more, found {getattr(getattr(settings, section), name)}"
    for key, period in _periods(settings):
        if not period:
            yield (key,), "expected more than nothing, found 0s: without a pause this would never rest"
    for key, deadline in (
        ("server.head_deadline", server.head_deadline),
        ("server.database_deadline", server.database_deadline),
    ):
        if not deadline:
            yield (key,), "expected more than nothing, found 0s: nothing would ever be in time"


def _periods(settings: Settings) -> Iterator[tuple[str, float]]:
    for section, names in {
        "node": ("beat",),
        "bus": ("probe", "poll_healthy", "poll_slow", "poll_blind"),
        "channel": ("ping", "renew", "send_deadline", "handshake"),
        "sweep": ("nodes", "stuck", "messages", "history"),
        "breaker": ("within", "slow", "deadline"),
    }.items():
        for name in names:
            yield f"{section}.{name}", getattr(getattr(settings, section), name)
