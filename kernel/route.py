"""What a route strategy is shown, what it may answer, and the kernel's own order."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from kernel.agent import Phase
from kernel.broker import Broker
from kernel.intent import Op


class Route(StrEnum):
    LOCAL = "local"
    """Straight into the tunnel: the socket is here."""
    FORWARD = "forward"
    """A row, then a signal to the node that holds the socket."""
    DIRECT = "direct"
    """A row, then a request to the broker's HTTP endpoint: it has no socket, and this node may call it."""
    HOLD = "hold"
    """A row that waits for the broker to come."""
    REFUSE = "refuse"
    """A typed error at once, nothing stored."""


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot that a strategy decides from: no I/O, no side effects, and it may be wrong a moment later."""

    op: Op
    agent_id: str
    agent_slug: str
    project_id: str
    phase: Phase
    labels: dict[str, str]
    """The agent's labels."""
    broker: Broker
    node_id: str
    socket_here: bool
    held_elsewhere: bool
    """Another node holds the broker, by its socket or over HTTP."""
    direct: bool
    """This node may call the broker's HTTP endpoint: nobody holds the broker, or this node does so over HTTP."""
    hold: bool
    """The caller lets it wait: a message by default, anything else with `Prefer: deliver=hold`."""
    now: bool
    """The caller does not let it wait: `Prefer: deliver=now`."""
    between_sockets: bool
    """The broker lost its socket a moment ago and is most likely dialling again."""


class RouteAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict with its reason. `retry_after` (seconds) goes with REFUSE."""

    route: Route
    reason: str
    retry_after: float = 5.0


class PlacementRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `rank_brokers` is shown: the brokers that may run a new agent."""

    project_id: str
    agent_slug: str
    labels: dict[str, str]
    candidates: tuple[Broker, ...]


def local_applies(request: RouteRequest) -> bool:
    return request.socket_here and not request.broker.paused


def forward_applies(request: RouteRequest) -> bool:
    return request.held_elsewhere and not request.broker.paused


def direct_applies(request: RouteRequest) -> bool:
    """A socket is better, wherever it is."""
    return request.direct and not (request.socket_here or request.held_elsewhere or request.broker.paused)


def hold_applies(request: RouteRequest) -> bool:
    """Nobody can be sent to now, and the call may wait: it was asked to, or the broker is between two sockets."""
    if local_applies(request) or forward_applies(request) or direct_applies(request) or request.now:
        return False
    return request.hold or (request.between_sockets and not request.broker.paused)


def refuse_applies(request: RouteRequest) -> bool:
    return not any(applies(request) for applies in (local_applies, forward_applies, direct_applies, hold_applies))


PREDICATES: dict[Route, Callable[[RouteRequest], bool]] = {
    Route.LOCAL: local_applies,
    Route.FORWARD: forward_applies,
    Route.DIRECT: direct_applies,
    Route.HOLD: hold_applies,
    Route.REFUSE: refuse_applies,
}
"""In the kernel's own order, which is always the last adviser. Exactly one applies to any request."""


def advice_for(route: Route, request: RouteRequest) -> RouteAdvice:
    """The built-in verdict for a route whose predicate applies."""
    return RouteAdvice(route=route, reason=_reason(route, request))


def standard(request: RouteRequest) -> RouteAdvice:
    """The kernel's own verdict: the first predicate that applies."""
    for route, applies in PREDICATES.items():
        if applies(request):
            return advice_for(route, request)
    raise AssertionError("one predicate always applies")


def agrees(advice: object, request: RouteRequest) -> bool:
    """Whether a strategy's answer is an advice that the snapshot allows; a contradiction counts as a fault."""
    if not isinstance(advice, RouteAdvice) or not isinstance(advice.route, Route):
        return False
    match advice.route:
        case Route.LOCAL:
            return local_applies(request)
        case Route.FORWARD:
            return forward_applies(request)
        case Route.DIRECT:
            return direct_applies(request)
        case Route.HOLD:
            return not request.now
        case Route.REFUSE:
            return True


def _reason(route: Route, request: RouteRequest) -> str:
    match route:
        case Route.LOCAL:
            return "socket_here"
        case Route.FORWARD:
            return "held_elsewhere"
        case Route.DIRECT:
            return "has_endpoint"
        case Route.HOLD:
            return "between_sockets" if not request.hold else "nobody_home"
        case Route.REFUSE:
            return "paused" if request.broker.paused else "nobody_home"
