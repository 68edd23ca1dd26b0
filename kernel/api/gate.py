"""The gate: every request gets an id, a name for who asks, and a yes or no, before anything of it is read."""

from __future__ import annotations

import logging
from typing import Any

import falcon
from falcon.asgi import WebSocket

from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, Seen
from kernel.api.limits import Limits
from kernel.api.routes import Route
from kernel.errors import Draining, Forbidden, Misbehaved, RateLimited, Unauthenticated
from kernel.hooks import Hooks
from kernel.session import Principal, Resource

log = logging.getLogger(__name__)

LONGEST_REQUEST_ID = 128


class Gate:
    """The framework's middleware. `table` holds what each path and method declared."""

    def __init__(self, edge: Edge, limits: Limits, table: dict[str, dict[str, Route]]) -> None:
        self._edge = edge
        self._limits = limits
        self._table = table

    # -- before a route is known ---------------------------------------------------------------------------------

    async def process_request(self, req: Asked, resp: Responded) -> None:
        self._meet(req)
        resp.set_header("X-Request-Id", req.request_id)

    async def process_request_ws(self, req: Asked, ws: WebSocket) -> None:
        self._meet(req)

    def _meet(self, req: Asked) -> None:
        req.started = self._edge.clock.monotonic()
        req.body_limit = self._edge.settings.server.body_limit
        given = req.get_header("X-Request-Id") or ""
        known = 0 < len(given) <= LONGEST_REQUEST_ID and given.isascii() and given.isprintable()
        req.request_id = given if known else self._edge.clock.uuid7()

    # -- once it is ----------------------------------------------------------------------------------------------

    async def process_resource(self, req: Asked, resp: Responded, resource: object, params: dict[str, Any]) -> None:
        known = self._table[req.uri_template or ""]
        route = known.get(req.method)
        if route is None:
            raise falcon.HTTPMethodNotAllowed([method for method in known if method != "WEBSOCKET"])
        await self._admit(req, route, params)

    async def process_resource_ws(self, req: Asked, ws: WebSocket, resource: object, params: dict[str, Any]) -> None:
        route = self._table[req.uri_template or ""].get("WEBSOCKET")
        if route is None:
            raise falcon.HTTPNotFound
        await self._guarded(req, route, params)

    async def _guarded(self, req: Asked, route: Route, params: dict[str, Any]) -> None:
        """An upgrade: who fails at it again and again must wait before trying once more."""
        if self._edge.links.draining:
            raise Draining
        if route.guard:
            self._limits.failed_upgrades.check(req.peer)
            self._limits.upgrades.check(req.peer)
        try:
            await self._admit(req, route, params)
        except (Unauthenticated, Forbidden, RateLimited):
            self._limits.failed_upgrades.note(req.peer)
            raise
        self._limits.upgrades.note(req.peer)

    async def _admit(self, req: Asked, route: Route, params: dict[str, Any]) -> None:
        """Raises: Unauthenticated, Forbidden, RateLimited; whatever the hooks cannot say is a no."""
        if route.public:
            return
        principal = await self._known(req)
        self._limits.requests.check(str(principal))
        self._limits.requests.note(str(principal))
        await self._allowed(principal, route, params)
        req.principal = principal

    async def _known(self, req: Asked) -> Principal:
        started = self._edge.clock.monotonic()
        try:
            answer = await self._edge.hooks.authenticate.ask(Seen(req))
        except Misbehaved as fault:
            raise Unauthenticated(f"nobody is let in: {fault.message}") from fault
        finally:
            self._edge.observer.stage("authenticate", self._edge.clock.monotonic() - started)
        if answer is None:
            raise Unauthenticated
        return answer.value

    async def _allowed(self, principal: Principal, route: Route, params: dict[str, Any]) -> None:
        if principal.kind not in route.access:
            raise Forbidden(f"{route.action} is for {' and '.join(route.access)}s, not for {principal.kind}s")
        resource = Resource(
            kind=route.kind,
            id=params.get(route.kind),
            project_id=params.get("project"),
            broker_id=params.get("broker"),
        )
        await check_allowed(self._edge.hooks, principal, route.action, resource)

    # -- afterwards ----------------------------------------------------------------------------------------------

    async def process_response(self, req: Asked, resp: Responded, resource: object, req_succeeded: bool) -> None:
        seconds = self._edge.clock.monotonic() - req.started
        self._edge.observer.request(req.uri_template or "unknown", req.method, resp.status_code, seconds)
        level = logging.DEBUG if resp.status_code < 400 else logging.INFO
        if log.isEnabledFor(level):
            path = req.scope.get("raw_path", b"").decode("latin-1")
            log.log(level, "%s %s %s %.4f request=%s", req.method, path, resp.status_code, seconds, req.request_id)


async def check_allowed(hooks: Hooks, principal: Principal, action: str, resource: Resource) -> None:
    """Raises: Forbidden; whatever the hooks cannot say is a no."""
    try:
        answer = await hooks.authorize.ask(principal, action, resource)
    except Misbehaved as fault:
        raise Forbidden(f"nothing is allowed: {fault.message}") from fault
    if answer is None:
        raise Forbidden(f"nothing allows {principal} to do {action}")
    if not answer.value.allowed:
        raise Forbidden(answer.value.reason)
