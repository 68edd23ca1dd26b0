"""What each responder declares of itself: `@route`, and the table that the gate and the app are built from."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import msgspec

from kernel.api.bodies import from_body, from_query
from kernel.errors import Misconfigured

Access = Literal["public", "user", "agent", "broker"]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "WEBSOCKET")


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Who may ask for what. `action` is what `authorize` is asked: a kind of thing and a verb, `agent.start`."""

    action: str
    access: tuple[Access, ...]
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    guard: Literal["upgrades"] | None = None
    """The limits that count failures to be let in at all."""

    @property
    def kind(self) -> str:
        return self.action.partition(".")[0]

    @property
    def public(self) -> bool:
        return "public" in self.access


Responder = TypeVar("Responder", bound=Callable[..., Awaitable[None]])


def route(
    *,
    action: str,
    access: Access | tuple[Access, ...],
    body: type[msgspec.Struct] | None = None,
    query: type[msgspec.Struct] | None = None,
    guard: Literal["upgrades"] | None = None,
) -> Callable[[Responder], Responder]:
    """Declare a responder. With `body` or `query` it is called with that value, read and checked, under that name."""
    declared = Route(
        action=action,
        access=(access,) if isinstance(access, str) else access,
        body=body,
        query=query,
        guard=guard,
    )

    def declare(responder: Responder) -> Responder:
        @functools.wraps(responder)
        async def respond(self: Any, req: Any, resp: Any, **parameters: Any) -> None:
            if query is not None:
                parameters["query"] = from_query(req.query_string, query)
            if body is not None:
                parameters["body"] = from_body(await req.raw(), body)
            await responder(self, req, resp, **parameters)

        respond.route = declared  # type: ignore[attr-defined]
        return respond  # type: ignore[return-value]

    return declare


def routes_of(resource: object, suffix: str | None) -> dict[str, Route]:
    """The routes of one resource by method. Raises: Misconfigured when a responder declares nothing."""
    found: dict[str, Route] = {}
    for method in METHODS:
        name = f"on_{method.lower()}" + (f"_{suffix}" if suffix else "")
        responder = getattr(resource, name, None)
        if responder is None:
            continue
        declared = getattr(responder, "route", None)
        if not isinstance(declared, Route):
            raise Misconfigured(f"{type(resource).__name__}.{name} has no @route: say what it does and who may ask")
        found[method] = declared
    return found
