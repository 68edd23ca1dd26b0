"""Broker signatures, read from the wire's text and not from the hub's code, so that a mistake in either shows."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

BROKER_ID = "X-Scion-Broker-ID"
TIMESTAMP = "X-Scion-Timestamp"
NONCE = "X-Scion-Nonce"
SIGNATURE = "X-Scion-Signature"
SIGNED_HEADERS = "X-Scion-Signed-Headers"
CLOCK_WINDOW = 300


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as both sides see it: `query` has no `?`, `path` is as it stands on the wire."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str]
    body: bytes = b""


def new_nonce() -> str:
    return base64.urlsafe_b64encode(os.urandom(16)).decode()


def canonical(asked: Asked) -> bytes:
    """METHOD, PATH, QUERY, TIMESTAMP, NONCE and each signed header end with a newline; the body's hash does not."""
    known = {name.lower(): value for name, value in asked.headers.items()}
    lines = [
        asked.method,
        unquote(asked.path),
        asked.query,
        known.get(TIMESTAMP.lower(), ""),
        known.get(NONCE.lower(), ""),
    ]
    for name in filter(None, known.get(SIGNED_HEADERS.lower(), "").split(";")):
        wanted = name.strip().lower()
        lines.append(f"{wanted}:{known.get(wanted, '').strip()}")
    text = "".join(f"{line}\n" for line in lines).encode()
    if asked.body:
        text += base64.b64encode(hashlib.sha256(asked.body).digest())
    return text


def signature(secret: bytes, asked: Asked) -> str:
    return base64.b64encode(hmac.new(secret, canonical(asked), hashlib.sha256).digest()).decode()


def signed(
    broker_id: str,
    secret: bytes,
    method: str,
    path: str,
    *,
    query: str = "",
    body: bytes = b"",
    nonce: str | None = None,
    timestamp: int | None = None,
    cover: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers of a signed request; `cover` are further headers, sent and covered by the signature."""
    headers = {
        BROKER_ID: broker_id,
        TIMESTAMP: str(int(time.time()) if timestamp is None else timestamp),
        NONCE: nonce or new_nonce(),
        **(cover or {}),
    }
    if cover:
        headers[SIGNED_HEADERS] = ";".join(cover)
    asked = Asked(method=method, path=path, query=query, headers=headers, body=body)
    return {**headers, SIGNATURE: signature(secret, asked)}


def fault(secret: bytes, broker_id: str, asked: Asked, seen: set[str]) -> str | None:
    """What a broker objects to in a tunnelled request; None when it is rightly signed. Remembers the nonce."""
    known = {name.lower(): value for name, value in asked.headers.items()}
    missing = [name for name in (TIMESTAMP, NONCE, SIGNATURE) if not known.get(name.lower())]
    if missing:
        return f"missing {', '.join(missing)}"
    if known.get(BROKER_ID.lower(), broker_id) != broker_id:
        return f"signed for another broker: {known[BROKER_ID.lower()]}"
    stamp, nonce = known[TIMESTAMP.lower()], known[NONCE.lower()]
    if not stamp.isdigit() or abs(time.time() - int(stamp)) > CLOCK_WINDOW:
        return f"timestamp {stamp} is not Unix seconds within {CLOCK_WINDOW} s"
    if not hmac.compare_digest(known[SIGNATURE.lower()], signature(secret, asked)):
        return "signature does not match"
    if nonce in seen:
        return "nonce was used before"
    seen.add(nonce)
    return None
