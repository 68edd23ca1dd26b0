"""Builds the app: every path with its resource, the gate before them, one way in which errors leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import falcon
import falcon.asgi
from falcon.asgi import WebSocket

from kernel.api.agents import Agents
from kernel.api.batches import Batch, Broadcast
from kernel.api.brokers import Brokers, Join
from kernel.api.connect import Connect
from kernel.api.dispatches import Dispatches
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded
from kernel.api.faults import Fault, fault_of
from kernel.api.fleet import Fleet
from kernel.api.gate import Gate
from kernel.api.health import Health
from kernel.api.lifecycle import Lifecycle
from kernel.api.limits import Limits
from kernel.api.messages import Inbox, Messages
from kernel.api.nodes import Nodes
from kernel.api.projects import Projects
from kernel.api.routes import Route, routes_of

BASE = "/api/v1"
REFUSAL = "pointsman.refusal"
Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def build_app(edge: Edge) -> Application:
    """An ASGI application. Raises: Misconfigured when a responder does not declare who may ask."""
    limits = edge.limits()
    table: dict[str, dict[str, Route]] = {}
    app: falcon.asgi.App[Asked, Responded] = falcon.asgi.App(
        request_type=Asked, middleware=[Gate(edge, limits, table)], cors_enable=False
    )
    app.ws_options.max_receive_queue = 0
    teller = Teller(edge)
    app.add_error_handler(Exception, teller.tell)
    app.add_error_handler(falcon.HTTPError, teller.tell)
    app.add_error_handler(falcon.WebSocketDisconnected, teller.gone)
    for path, resource, suffix in _paths(edge, limits):
        table[path] = routes_of(resource, suffix)
        app.add_route(path, resource, suffix=suffix)
    if not edge.settings.server.public_metrics:
        table["/metrics"]["GET"] = Route(action="hub.metrics", access=("user",))
    return Front(app)


def _paths(edge: Edge, limits: Limits) -> list[tuple[str, Any, str | None]]:
    health, fleet, nodes, projects = Health(edge), Fleet(edge), Nodes(edge), Projects(edge)
    brokers, dispatches, inbox, broadcast = Brokers(edge), Dispatches(edge), Inbox(edge), Broadcast(edge)
    paths: list[tuple[str, Any, str | None]] = [
        ("/healthz", health, "alive"),
        ("/readyz", health, "ready"),
        ("/metrics", health, "metrics"),
        (f"{BASE}/hub", fleet, "hub"),
        (f"{BASE}/nodes", nodes, None),
        (f"{BASE}/nodes/{{node}}/drain", nodes, "drain"),
        (f"{BASE}/plugins", fleet, "plugins"),
        (f"{BASE}/brokers", brokers, "register"),
        (f"{BASE}/brokers/join", Join(edge, limits), None),
        (f"{BASE}/runtime-brokers", brokers, None),
        (f"{BASE}/runtime-brokers/connect", Connect(edge), None),
        (f"{BASE}/runtime-brokers/{{broker}}", brokers, "one"),
        (f"{BASE}/runtime-brokers/{{broker}}/pause", brokers, "pause"),
        (f"{BASE}/runtime-brokers/{{broker}}/resume", brokers, "resume"),
        (f"{BASE}/runtime-brokers/{{broker}}/heartbeat", brokers, "heartbeat"),
        (f"{BASE}/messages", inbox, None),
        (f"{BASE}/messages/batch", Batch(edge), None),
        (f"{BASE}/messages/{{message}}/read", inbox, "read"),
        (f"{BASE}/dispatches", dispatches, None),
        (f"{BASE}/dispatches/{{dispatch}}", dispatches, "one"),
        (f"{BASE}/dispatches/{{dispatch}}/cancel", dispatches, "cancel"),
        (f"{BASE}/dispatches/{{dispatch}}/requeue", dispatches, "requeue"),
        (f"{BASE}/dispatches/{{dispatch}}/explain", dispatches, "explain"),
    ]
    for name in ("projects", "groves"):
        paths.append((f"{BASE}/{name}", projects, None))
        paths.append((f"{BASE}/{name}/{{project}}", projects, "one"))
        paths.append((f"{BASE}/{name}/{{project}}/broadcast", broadcast, None))
    return paths + _agent_paths(edge)


def _agent_paths(edge: Edge) -> list[tuple[str, Any, str | None]]:
    """Every path of agents, at the top and under their project."""
    agents, lifecycle, messages = Agents(edge), Lifecycle(edge), Messages(edge)
    paths: list[tuple[str, Any, str | None]] = []
    for base in (BASE, f"{BASE}/projects/{{project}}", f"{BASE}/groves/{{project}}"):
        one = f"{base}/agents/{{agent}}"
        paths += [
            (f"{base}/agents", agents, None if base == BASE else "in_project"),
            (one, agents, "one"),
            *((f"{one}/{verb}", lifecycle, verb) for verb in ("start", "stop", "restart", "suspend")),
            (f"{one}/env", lifecycle, "env"),
            (f"{one}/has-prompt", lifecycle, "prompt"),
            (f"{one}/status", agents, "status"),
            (f"{one}/logs", agents, "logs"),
            (f"{one}/message", messages, None),
        ]
    return paths


class Teller:
    """Tells every error that leaves, in one way."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def tell(
        self,
        req: Asked,
        resp: Responded | None,
        error: Exception,
        params: dict[str, Any],
        ws: WebSocket | None = None,
    ) -> None:
        fault = fault_of(error, req.request_id)
        if resp is not None:
            resp.status = fault.status
            resp.set_headers(fault.headers)
            resp.content_type = falcon.MEDIA_JSON
            resp.data = fault.body
        elif ws is not None:
            await self._refuse(req, fault, ws)

    async def _refuse(self, req: Asked, fault: Fault, ws: WebSocket) -> None:
        """An upgrade is refused by the front, in plain HTTP, with what is left for it in the scope."""
        if not ws.unaccepted:
            await ws.close(1011, "internal_error")
            return
        self._edge.links.refused[fault.status] += 1
        req.scope[REFUSAL] = fault, req.request_id
        await ws.close()

    async def gone(
        self,
        req: Asked,
        resp: Responded | None,
        error: Exception,
        params: dict[str, Any],
        ws: WebSocket | None = None,
    ) -> None:
        """The peer of a socket left: nobody is there to be told."""


class Front:
    """Stands between server and framework: refuses upgrades in plain HTTP, and lets nobody wait for a body that
    nobody has asked for."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await self._socket(scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        """The framework wants a first piece of body before it looks at anything: it gets an empty one, so that a
        refusal does not wait for the client. HEAD is served as GET; the server leaves its body out."""
        first = True

        async def next_piece() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b"", "more_body": True}
            return await receive()

        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, next_piece, send)

    async def _socket(self, scope: Message, receive: Receive, send: Send) -> None:
        accepted = False

        async def answer(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            if message["type"] == "websocket.close" and not accepted:
                await _refuse(scope, send)
                return
            try:
                await send(message)
            except OSError:
                if message["type"] != "websocket.close":
                    raise

        await self._app(scope, receive, answer)


async def _refuse(scope: Message, send: Send) -> None:
    fault, request_id = scope.get(REFUSAL) or (fault_of(falcon.HTTPNotFound(), ""), "")
    assert isinstance(fault, Fault)
    headers = {"Content-Type": falcon.MEDIA_JSON, "X-Request-Id": request_id, **fault.headers}
    await send(
        {
            "type": "websocket.http.response.start",
            "status": fault.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "websocket.http.response.body", "body": fault.body})
