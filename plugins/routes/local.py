"""LOCAL: straight into the tunnel, when the socket is on this node."""

from __future__ import annotations

from kernel import Route, RouteAdvice, RouteRequest, advice_for, hookimpl, local_applies

api = 1


@hookimpl
def rank_route(request: RouteRequest) -> RouteAdvice | None:
    return advice_for(Route.LOCAL, request) if local_applies(request) else None
