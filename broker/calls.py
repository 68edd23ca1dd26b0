"""A tunnelled request as the broker's endpoints see it."""

from __future__ import annotations

import time
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import msgspec

from broker.answer import Refusal
from kernel import wire

Op = Literal[
    "create", "start", "restart", "stop", "suspend", "delete", "message", "finalize_env", "exec",
    "show", "list", "info", "health", "logs", "has_prompt", "cancel",
]  # fmt: skip
READS = frozenset({"show", "list", "info", "health", "logs", "has_prompt"})
"""Without an effect: nothing of them can happen twice."""
STARTS = frozenset({"create", "start", "restart", "finalize_env"})
_AGENTS = "/api/v1/agents"
_DISPATCHES = "/api/v1/dispatches"
_ACTIONS: dict[tuple[str, str], Op] = {
    ("GET", ""): "show",
    ("DELETE", ""): "delete",
    ("POST", "start"): "start",
    ("POST", "restart"): "restart",
    ("POST", "stop"): "stop",
    ("POST", "suspend"): "suspend",
    ("POST", "message"): "message",
    ("POST", "finalize-env"): "finalize_env",
    ("POST", "exec"): "exec",
    ("GET", "logs"): "logs",
    ("GET", "has-prompt"): "has_prompt",
    ("POST", "has-prompt"): "has_prompt",
}
_WHOLE: dict[tuple[str, str], Op] = {
    ("POST", _AGENTS): "create",
    ("GET", _AGENTS): "list",
    ("GET", "/api/v1/info"): "info",
    ("GET", "/healthz"): "health",
}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request, read but not yet checked against any agent."""

    op: Op
    id: str
    """The dispatch id; for a request without one the id of its frame."""
    ref: str
    """The agent's slug (or id) in the path; for create the slug in the body."""
    project_id: str
    agent_id: str | None
    query: dict[str, str]
    body: dict[str, Any]
    epoch: int | None
    until: float
    """On the monotonic clock; infinite without a deadline."""

    @property
    def remaining(self) -> float:
        """Seconds until its deadline; 0 without one."""
        return 0.0 if self.until == float("inf") else max(0.0, self.until - time.monotonic())

    def text(self, name: str) -> str | None:
        """A field of the body that is a text and not empty."""
        value = self.body.get(name)
        return value if isinstance(value, str) and value else None


def read_call(request: wire.Request) -> Call:
    """Raises: Refusal."""
    op, ref = _operation(request)
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    body = {} if op in READS else _body(request.body)
    slug, agent_id = body.get("slug"), body.get("id") if op == "create" else None
    project = query.get("projectId") or body.get("projectId") or query.get("groveId") or body.get("groveId")
    return Call(
        op=op,
        id=request.header(wire.DISPATCH_ID) or request.request_id,
        ref=ref or (slug if isinstance(slug, str) else ""),
        project_id=project if isinstance(project, str) else "",
        agent_id=request.header(wire.AGENT_ID) or (agent_id if isinstance(agent_id, str) else None),
        query=query,
        body=body,
        epoch=_number(request, wire.DISPATCH_EPOCH),
        until=_until(_number(request, wire.DISPATCH_TIMEOUT)),
    )


def _operation(request: wire.Request) -> tuple[Op, str]:
    method = request.method.upper()
    if (method, request.path) in _WHOLE:
        return _WHOLE[method, request.path], ""
    if request.path.startswith(f"{_AGENTS}/"):
        ref, _, action = request.path.removeprefix(f"{_AGENTS}/").partition("/")
        if (method, action) in _ACTIONS:
            return _ACTIONS[method, action], unquote(ref)
    if request.path.startswith(f"{_DISPATCHES}/"):
        ref, _, action = request.path.removeprefix(f"{_DISPATCHES}/").partition("/")
        if (method, action) == ("POST", "cancel"):
            return "cancel", unquote(ref)
    raise Refusal(404, "not_found", f"this broker has no {method} {request.path}")


def _body(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw) if raw else {}
    except (msgspec.DecodeError, RecursionError) as fault:
        raise Refusal(400, "invalid_request", f"the body is no JSON: {fault}") from fault
    if not isinstance(body, dict):
        raise Refusal(400, "invalid_request", "the body is a JSON object")
    return body


def _number(request: wire.Request, name: str) -> int | None:
    value = request.header(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise Refusal(400, "invalid_request", f"{name} is a number that is not negative; found {value!r:.40}")
    return int(value)


def _until(milliseconds: int | None) -> float:
    return float("inf") if milliseconds is None else time.monotonic() + milliseconds / 1000
