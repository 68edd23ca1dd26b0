"""Keeps an agent in its region: new agents go to a broker there, and none is started anywhere else."""

from __future__ import annotations

import msgspec

from kernel import STARTS, Broker, PlacementRequest, Route, RouteAdvice, RouteRequest, hookimpl


class Config(msgspec.Struct, frozen=True, kw_only=True):
    label: str = "region"
    """The label, of agents and of brokers, that names a region."""


class Plugin:
    api = 1
    Config = Config

    def __init__(self, config: Config) -> None:
        self._label = config.label

    @hookimpl
    def rank_brokers(self, request: PlacementRequest) -> tuple[Broker, ...] | None:
        region = request.labels.get(self._label)
        at_home = tuple(broker for broker in request.candidates if broker.labels.get(self._label) == region)
        return at_home if region else None

    @hookimpl
    def rank_route(self, request: RouteRequest) -> RouteAdvice | None:
        home, away = request.labels.get(self._label), request.broker.labels.get(self._label)
        if not home or home == away or request.op not in STARTS:
            return None
        return RouteAdvice(route=Route.REFUSE, reason=f"region {home} is not served by broker {request.broker.slug}")
