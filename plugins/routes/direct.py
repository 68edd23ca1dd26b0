"""DIRECT: a row, then a request to the broker's own endpoint, when nobody holds its socket."""

from __future__ import annotations

from kernel import Route, RouteAdvice, RouteRequest, advice_for, direct_applies, hookimpl

api = 1


@hookimpl
def rank_route(request: RouteRequest) -> RouteAdvice | None:
    return advice_for(Route.DIRECT, request) if direct_applies(request) else None
