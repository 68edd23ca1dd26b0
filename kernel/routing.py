"""Decides the route of a call: strategies advise, the snapshot is held against them, the kernel's order comes last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from kernel.broker import Broker
from kernel.call import Call
from kernel.clock import Clock
from kernel.errors import BrokerOffline, BrokerPaused, PayloadTooLarge, PointsmanError, Unprocessable
from kernel.intent import IntentId
from kernel.links import Links
from kernel.node import NodeId
from kernel.observe import Observer
from kernel.route import Route, RouteAdvice, RouteRequest, agrees, standard
from kernel.transition import ACCEPTED, REFUSED, Transition

FRAME_ALLOWANCE = 1_500
"""Bytes of a request frame beside its body: ids, path, signature."""


KERNEL = "kernel"
"""Who decided when no strategy did."""


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict on one call."""

    request: RouteRequest
    advice: RouteAdvice
    why: dict[str, str]
    """Reason and plugin, kept in the intent's history."""


class RouteHook(Protocol):
    """The compiled `rank_route`."""

    def ask(self, *arguments: object, accept: Any = None) -> Any: ...


class Routing:
    """Asks the strategies. None of them claims, fences or sends: a wrong one costs time, never safety."""

    def __init__(
        self,
        *,
        links: Links,
        observer: Observer,
        clock: Clock,
        node_id: NodeId,
        rank_route: RouteHook,
        reconnect_grace: float,
        endpoint_answers: Callable[[Broker], bool],
    ) -> None:
        self._links = links
        self._observer = observer
        self._clock = clock
        self._node_id = node_id
        self._rank_route = rank_route
        self._reconnect_grace = reconnect_grace
        self._endpoint_answers = endpoint_answers

    def decide(self, call: Call, intent_id: IntentId) -> Decided:
        """The snapshot, the verdict, and who gave it.

        Raises: BrokerOffline, BrokerPaused; Unprocessable without a broker; PayloadTooLarge.
        """
        started = self._clock.monotonic()
        broker = call.view.broker
        if broker is None:
            raise Unprocessable("this agent has no broker: create it again, or give it one")
        request = self._snapshot(call, broker)
        advised = self._rank_route.ask(request, accept=lambda advice: agrees(advice, request))
        advice: RouteAdvice = advised.value if advised else standard(request)
        self._observer.stage("route", self._clock.monotonic() - started)
        if advice.route is Route.REFUSE:
            self._observer.tell([self._refused(call, intent_id, advice.reason)])
            raise _refusal(request, advice)
        self._check_size(call, broker)
        by = advised.plugin if advised else KERNEL
        return Decided(request=request, advice=advice, why={"reason": advice.reason, "by": by})

    def _snapshot(self, call: Call, broker: Broker) -> RouteRequest:
        link = self._links.of(broker.id)
        directly = link is not None and link.broker.connection_kind == "direct"
        here = link is not None and not directly
        elsewhere = not here and self._held_elsewhere(broker)
        agent = call.view.agent
        return RouteRequest(
            op=call.op,
            agent_id=agent.id,
            agent_slug=agent.slug,
            project_id=agent.project_id,
            phase=agent.phase,
            labels=agent.labels,
            broker=broker,
            node_id=self._node_id,
            socket_here=here,
            held_elsewhere=elsewhere,
            direct=not elsewhere and (directly or self._may_call(broker)),
            hold=call.hold,
            now=call.deliver == "now",
            between_sockets=not here and self._between_sockets(broker),
        )

    def _held_elsewhere(self, broker: Broker) -> bool:
        """By a socket that was renewed lately; or over HTTP, which is a hint as old as the row."""
        held = broker.online or broker.connection_kind == "direct"
        return held and broker.connected_hub_id not in (None, self._node_id)

    def _may_call(self, broker: Broker) -> bool:
        """Its row names nobody but this node, whose link is about to be released then; and its endpoint answers."""
        return broker.connected_hub_id in (None, self._node_id) and self._endpoint_answers(broker)

    def _between_sockets(self, broker: Broker) -> bool:
        """It lost its socket a moment ago, and not by its own orderly close: most likely it is dialling. A row that
        still names this node lost it so lately that the release is not written yet."""
        if broker.online and broker.connected_hub_id == self._node_id:
            return True
        missing = broker.missing_for
        return missing is not None and missing < self._reconnect_grace and not broker.left_orderly

    def _check_size(self, call: Call, broker: Broker) -> None:
        """What can never fit into a frame to this broker is told now, whichever hub holds it."""
        limit = self._links.frame_limit(broker)
        size = len(msgspec.json.encode(call.args)) * 4 // 3 + FRAME_ALLOWANCE
        if limit is not None and size > limit:
            told = f"the request needs a frame of about {size} bytes; its broker takes {limit}: send less"
            raise PayloadTooLarge(told)

    def _refused(self, call: Call, intent_id: IntentId, reason: str) -> Transition:
        return Transition(
            intent_id=intent_id,
            op=call.op,
            n=1,
            at=self._clock.now(),
            from_state=ACCEPTED,
            to_state=REFUSED,
            reason=reason,
            node_id=self._node_id,
        )


def _refusal(request: RouteRequest, advice: RouteAdvice) -> PointsmanError:
    details = {"brokerId": request.broker.id, "reason": advice.reason}
    if advice.reason == "paused":
        return BrokerPaused(details=details, retry_after=advice.retry_after)
    strategy = f"a route strategy refused the call: {advice.reason}" if advice.reason != "nobody_home" else None
    return BrokerOffline(strategy, details=details, retry_after=advice.retry_after)
