"""HOLD: a row that waits for its broker, when the call may wait."""

from __future__ import annotations

from kernel import Route, RouteAdvice, RouteRequest, advice_for, hold_applies, hookimpl

api = 1


@hookimpl
def rank_route(request: RouteRequest) -> RouteAdvice | None:
    return advice_for(Route.HOLD, request) if hold_applies(request) else None
