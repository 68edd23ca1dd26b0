"""What the broker answers to one tunnelled request."""

from __future__ import annotations

from typing import Any

import msgspec

PASSING = frozenset({408, 412, 425, 429})
"""4xx answers that end nothing: the id is forgotten and its next attempt runs."""
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A status with a body that is ready to be sent."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    retry_after: int | None = None

    @property
    def final(self) -> bool:
        """Kept for the repeat. Any other means that nothing took effect (design/wire.md, Inbox)."""
        return 200 <= self.status < 300 or (400 <= self.status < 500 and self.status not in PASSING)

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": self.content_type} if self.body else {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return headers


class Refusal(Exception):
    """Ends an operation with an error answer."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        self.answer = refused(status, code, message, **more)
        super().__init__(message)


def said(status: int, body: Any = None) -> Answer:
    return Answer(status=status, body=b"" if body is None else msgspec.json.encode(body))


def refused(
    status: int, code: str, message: str, *, details: dict[str, Any] | None = None, retry_after: int | None = None
) -> Answer:
    error: dict[str, Any] = {"code": code, "message": message}
    if details:
        error["details"] = details
    return Answer(status=status, body=msgspec.json.encode({"error": error}), retry_after=retry_after)
