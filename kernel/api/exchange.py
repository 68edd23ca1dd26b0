"""One HTTP request as the edge's own code sees it: who asks, under which id, with which body."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import anyio
import falcon
import falcon.asgi
import msgspec

from kernel.errors import Malformed, PayloadTooLarge
from kernel.session import Principal

BODY_DEADLINE = 30.0
"""Seconds in which a whole body must have arrived."""
SIGNED_BODY_DEADLINE = 8.0
"""The same for a body that is read to find out who sent it: less than what a plugin gets for its answer."""
Responded = falcon.asgi.Response


class Asked(falcon.asgi.Request):
    """The framework's request, with what the gate found out about it."""

    request_id: str = ""
    started: float = 0.0
    body_limit: int = 1_048_576
    _principal: Principal | None = None
    _raw: bytes | None = None

    @property
    def principal(self) -> Principal:
        """Who asks; on public routes nobody does."""
        assert self._principal is not None, "the gate lets nobody in without a name"
        return self._principal

    @principal.setter
    def principal(self, principal: Principal) -> None:
        self._principal = principal

    @property
    def peer(self) -> str:
        """The client's address as the server sees it; `X-Forwarded-For` is no proof of anything."""
        client = self.scope.get("client")
        return str(client[0]) if client else ""

    @cached_property
    def lower_headers(self) -> Mapping[str, str]:
        """Lower-case names; what was sent twice is joined, so that a signature over it fails rather than picks one."""
        found: dict[str, str] = {}
        for name, value in self.scope["headers"]:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            found[key] = f"{found[key]}, {text}" if key in found else text
        return found

    async def raw(self, deadline: float = BODY_DEADLINE) -> bytes:
        """The whole body, read once, whichever way its length is told.

        Raises: PayloadTooLarge, Malformed.
        """
        if self._raw is None:
            self._raw = b"" if self.is_websocket else await self._read(deadline)
        return self._raw

    async def _read(self, deadline: float) -> bytes:
        if not self.content_length and "transfer-encoding" not in self.lower_headers:
            return b""
        told = f"the body is larger than {self.body_limit} bytes"
        if (self.content_length or 0) > self.body_limit:
            raise PayloadTooLarge(told)
        read = bytearray()
        with anyio.move_on_after(deadline) as scope:
            while chunk := await self.stream.read(65_536):
                read += chunk
                if len(read) > self.body_limit:
                    raise PayloadTooLarge(told)
        if scope.cancelled_caught:
            raise Malformed(f"the body did not arrive within {deadline:g} s")
        return bytes(read)


def tell(resp: Responded, value: Any, status: int = 200) -> None:
    """Answer with JSON."""
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    resp.data = msgspec.json.encode(value)


class Seen:
    """The same request as an `authenticate` hook sees it (`kernel.session.Request`)."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    @property
    def method(self) -> str:
        return str(self._asked.method)

    @property
    def path(self) -> str:
        return str(self._asked.scope["path"])

    @property
    def query(self) -> str:
        raw: bytes = self._asked.scope.get("query_string", b"")
        return raw.decode("latin-1")

    @property
    def headers(self) -> Mapping[str, str]:
        return self._asked.lower_headers

    @property
    def peer(self) -> str:
        return self._asked.peer

    async def body(self) -> bytes:
        return await self._asked.raw(SIGNED_BODY_DEADLINE)
