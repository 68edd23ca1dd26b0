"""Checks that a tunnelled request was signed by the hub, with the secret under which its socket was opened."""

from __future__ import annotations

import time
from collections import OrderedDict
from urllib.parse import unquote

from broker.answer import Refusal
from kernel import wire

_REMEMBERED = 2 * wire.CLOCK_WINDOW
_MOST = 200_000


class Signatures:
    """Remembers nonces for as long as their timestamps are good."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, float] = OrderedDict()

    def check(self, broker_id: str, secret: bytes, request: wire.Request) -> None:
        """Raises: Refusal, when it is not rightly signed."""
        timestamp, nonce = request.header(wire.TIMESTAMP) or "", request.header(wire.NONCE) or ""
        signature = request.header(wire.SIGNATURE) or ""
        if request.header(wire.BROKER_ID) not in (None, broker_id) or not wire.is_nonce(nonce):
            raise Refusal(401, "invalid_signature", "the request is not signed for this broker")
        if not timestamp.isascii() or not timestamp.isdigit():
            raise Refusal(401, "invalid_signature", f"{wire.TIMESTAMP} is a number of Unix seconds")
        covered = wire.covered(request.headers)
        canonical = wire.canonical_string(
            request.method, unquote(request.path), request.query, timestamp, nonce, covered, request.body
        )
        if not wire.is_signed(secret, canonical, signature):
            raise Refusal(401, "invalid_signature", "the signature does not match the request")
        if abs(time.time() - int(timestamp[:15])) > wire.CLOCK_WINDOW:
            raise Refusal(401, "clock_skew", "the timestamp is more than five minutes from this broker's clock")
        if not self._new(nonce):
            raise Refusal(401, "replay_detected", "this nonce was used before")

    def _new(self, nonce: str) -> bool:
        now = time.monotonic()
        while self._seen and (len(self._seen) > _MOST or next(iter(self._seen.values())) < now - _REMEMBERED):
            self._seen.popitem(last=False)
        if nonce in self._seen:
            return False
        self._seen[nonce] = now
        return True
