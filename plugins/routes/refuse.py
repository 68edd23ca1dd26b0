"""REFUSE: an error at once, when nobody is there and the call may not wait."""

from __future__ import annotations

from kernel import Route, RouteAdvice, RouteRequest, advice_for, hookimpl, refuse_applies

api = 1


@hookimpl
def rank_route(request: RouteRequest) -> RouteAdvice | None:
    return advice_for(Route.REFUSE, request) if refuse_applies(request) else None
