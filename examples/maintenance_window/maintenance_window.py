"""Refuses calls to a broker that is being worked on: it is on a list, or carries a label that says so."""

from __future__ import annotations

import msgspec

from kernel import Duration, Op, Route, RouteAdvice, RouteRequest, hookimpl


class Config(msgspec.Struct, frozen=True, kw_only=True):
    brokers: tuple[str, ...] = ()
    """Slugs of brokers that are closed for as long as they stand here."""
    label: str = "maintenance"
    """A broker whose label of this name is `on` is closed, from the next call on every hub."""
    retry_after: Duration = 300.0
    """What refused callers are told to wait."""
    let_through: tuple[Op, ...] = (Op.STOP, Op.DELETE)


class Plugin:
    api = 1
    Config = Config

    def __init__(self, config: Config) -> None:
        self._config = config

    @hookimpl
    def rank_route(self, request: RouteRequest) -> RouteAdvice | None:
        config, broker = self._config, request.broker
        closed = broker.slug in config.brokers or broker.labels.get(config.label) == "on"
        if not closed or request.op in config.let_through:
            return None
        return RouteAdvice(route=Route.REFUSE, reason="maintenance", retry_after=config.retry_after)
