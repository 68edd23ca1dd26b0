"""FORWARD: a row, then a signal to the node that holds the socket."""

from __future__ import annotations

from kernel import Route, RouteAdvice, RouteRequest, advice_for, forward_applies, hookimpl

api = 1


@hookimpl
def rank_route(request: RouteRequest) -> RouteAdvice | None:
    return advice_for(Route.FORWARD, request) if forward_applies(request) else None
