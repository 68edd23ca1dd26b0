"""Who is asking, and what they may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec

PrincipalKind = Literal["user", "agent", "broker"]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated caller. `claims` holds what its credential said beyond that."""

    kind: PrincipalKind
    id: str
    name: str
    role: Literal["admin", "member", "viewer"] | None = None
    claims: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of an `authorize` hook; None from the hook abstains."""

    allowed: bool
    reason: str


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """What an action is done to. None where the action names nothing."""

    kind: str
    id: str | None = None
    project_id: str | None = None
    broker_id: str | None = None


class Request(Protocol):
    """One HTTP request or upgrade, as an `authenticate` hook sees it."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str:
        """Percent-decoded, without the query."""
        ...

    @property
    def query(self) -> str:
        """As it came, without `?`."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Lower-case names."""
        ...

    @property
    def peer(self) -> str:
        """The client's address as the server sees it."""
        ...

    async def body(self) -> bytes:
        """At most `server.body_limit` bytes, read once.

        Raises:
            PayloadTooLarge: the body is larger.
        """
        ...
