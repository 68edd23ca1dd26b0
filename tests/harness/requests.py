"""A tunnelled request as the scripted broker reads it from a frame."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.harness.signing import Asked

AGENTS = "/api/v1/agents"


class Unreadable(Exception):
    """A frame that the stock broker drops in silence: said in the text, for the history."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One `request` frame, checked and decoded."""

    request_id: str
    asked: Asked
    op: str
    agent: str | None
    json: Any

    def header(self, name: str) -> str | None:
        wanted = name.lower()
        return next((value for key, value in self.asked.headers.items() if key.lower() == wanted), None)

    def number(self, name: str) -> int | None:
        value = self.header(name)
        return int(value) if value and value.lstrip("-").isdigit() else None

    @property
    def dispatch(self) -> str | None:
        return self.header("X-Dispatch-Id")

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(self.asked.query, keep_blank_values=True).items()}

    def told(self) -> dict[str, Any]:
        """What the history keeps of it."""
        return {
            "requestId": self.request_id,
            "op": self.op,
            "agent": self.agent,
            "dispatch": self.dispatch,
            "attempt": self.number("X-Dispatch-Attempt"),
            "epoch": self.number("X-Dispatch-Epoch"),
            "timeoutMs": self.number("X-Dispatch-Timeout-Ms"),
            "method": self.asked.method,
            "path": self.asked.path,
            "query": self.asked.query,
            "headers": dict(self.asked.headers),
            "json": self.json,
        }


def read_request(frame: dict[str, Any]) -> Request:
    """Raises: Unreadable, as strictly as a stock broker reads."""
    request_id, method, path = (_text(frame, name) for name in ("requestId", "method", "path"))
    query = frame.get("query") or ""
    if not isinstance(query, str) or query.startswith("?") or "?" in path:
        raise Unreadable("query is a text without its question mark, and not part of path")
    headers = frame.get("headers") or {}
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise Unreadable("headers map texts to texts")
    body = _body(frame.get("body"))
    op, agent = operation(method, path, body)
    asked = Asked(method=method, path=path, query=query, headers=headers, body=body)
    return Request(request_id=request_id, asked=asked, op=op, agent=agent, json=_json(body))


def operation(method: str, path: str, body: bytes) -> tuple[str, str | None]:
    """The operation's name and the agent's slug (for `create` the one in the body)."""
    if path == AGENTS:
        if method == "GET":
            return "list", None
        named = _json(body)
        return "create", named.get("slug") if isinstance(named, dict) else None
    if not path.startswith(f"{AGENTS}/"):
        return f"{method} {path}", None
    slug, _, action = unquote(path.removeprefix(f"{AGENTS}/")).partition("/")
    if not action:
        return {"DELETE": "delete", "GET": "show"}.get(method, f"{method} {path}"), slug
    return action.replace("-", "_"), slug


def _text(frame: dict[str, Any], name: str) -> str:
    value = frame.get(name)
    if not isinstance(value, str) or not value:
        raise Unreadable(f"{name} is a text")
    return value


def _body(value: Any) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str):
        raise Unreadable("body is a text")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as cause:
        raise Unreadable("body is standard, padded base64") from cause


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None
