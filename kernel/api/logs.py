"""What an agent printed: asked of its broker, over the socket that this hub holds."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import anyio

from kernel import wire
from kernel.api.edge import Edge
from kernel.errors import BrokerOffline, BrokerTimeout, LinkLost, NoRuntimeBroker, RuntimeFailed, WrongNode
from kernel.link import Link
from kernel.storage import AgentView

DEADLINE = 30.0
"""Seconds."""


async def printed(edge: Edge, view: AgentView, tail: int | None) -> str:
    """Raises: WrongNode, BrokerOffline, BrokerTimeout; RuntimeFailed with the broker's own error."""
    response = await _asked(_link(edge, view), _call(view, tail), view)
    text = response.body.decode(errors="replace")
    if not 200 <= response.status_code < 300:
        told = f"the broker answered {response.status_code}: {text[:1000]}"
        raise RuntimeFailed(told)
    return text


def _call(view: AgentView, tail: int | None) -> wire.Call:
    named = {"projectId": view.project.id, "groveId": view.project.id}
    query = urlencode(named if tail is None else {**named, "tail": tail})
    return wire.Call(method="GET", path=f"/api/v1/agents/{quote(view.agent.slug, safe='')}/logs", query=query)


def _link(edge: Edge, view: AgentView) -> Link:
    if view.broker is None:
        raise NoRuntimeBroker(f"agent {view.agent.slug} has no broker")
    link = edge.links.of(view.broker.id)
    if link:
        return link
    if view.broker.online:
        raise WrongNode(
            f"logs come only from the hub that holds the broker's socket: {view.broker.connected_hub_id}",
            details={"nodeId": view.broker.connected_hub_id},
        )
    raise BrokerOffline(f"broker {view.broker.name} is not connected: its agents' logs are out of reach")


async def _asked(link: Link, call: wire.Call, view: AgentView) -> wire.Response:
    try:
        exchange = link.request("", call, {wire.AGENT_ID: view.agent.id})
        try:
            with anyio.fail_after(DEADLINE):
                return await exchange.result()
        finally:
            link.forget(exchange)
    except LinkLost as lost:
        raise BrokerOffline("the broker's socket was lost while its log was read: try again") from lost
    except TimeoutError as late:
        raise BrokerTimeout(f"the broker did not send the log within {DEADLINE:g} s") from late
