"""Who this broker is: id and secret, got by registering and joining, kept in a file that only its owner may read."""

from __future__ import annotations

import base64
import os
import socket
from pathlib import Path
from typing import Any

import msgspec

from broker.settings import BrokerSettings, Registration, Unusable
from kernel import wire

FILE = "identity.json"
_DEADLINE = 30.0


class Identity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    broker_id: str
    secret: str
    """Standard base64 of 32 bytes."""
    name: str = ""
    hubs: tuple[str, ...] = ()

    def key(self) -> bytes:
        return base64.b64decode(self.secret)


class HubAway(Exception):
    """The hub could not be reached: try again."""


def load_identity(folder: Path) -> Identity | None:
    """None when the broker never joined. Raises: Unusable."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as fault:
        raise Unusable(f"{path} cannot be read: {fault}. Move it away and register the broker again.") from fault


def save_identity(folder: Path, identity: Identity) -> None:
    """Atomically, mode 0600."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = folder / f"{FILE}.new"
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(identity), indent=2) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    new.replace(folder / FILE)


async def register(settings: BrokerSettings, registration: Registration) -> Identity:
    """Register with the first hub, join, and keep the identity. Raises: HubAway, Unusable."""
    if not settings.hubs:
        raise Unusable("no hub was named: give its URL, as http://127.0.0.1:8080")
    hub = settings.hubs[0].rstrip("/")
    asked = {
        "name": registration.name,
        "autoProvide": registration.auto_provide,
        "capabilities": list(wire.CAPABILITIES),
        "labels": registration.labels,
    }
    if registration.endpoint:
        asked["endpoint"] = registration.endpoint
    told = await _post(f"{hub}/api/v1/brokers", asked, registration.token)
    joining = {
        "brokerId": told.get("brokerId"),
        "joinToken": told.get("joinToken"),
        "hostname": socket.gethostname(),
        "version": settings.version,
        "capabilities": list(wire.CAPABILITIES),
    }
    joined = await _post(f"{hub}/api/v1/brokers/join", joining, None)
    try:
        identity = Identity(
            broker_id=joined["brokerId"], secret=joined["secretKey"], name=registration.name, hubs=settings.hubs
        )
        identity.key()
    except (KeyError, ValueError, TypeError) as fault:
        raise Unusable(f"{hub} joined the broker but its answer names no secret: is it a pointsman hub?") from fault
    save_identity(settings.dir, identity)
    return identity


async def _post(url: str, body: dict[str, Any], token: str | None) -> dict[str, Any]:
    """Raises: HubAway, Unusable."""
    import httpx2

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with httpx2.AsyncClient(timeout=_DEADLINE, trust_env=False) as client:
            answer = await client.post(url, json=body, headers=headers)
    except (httpx2.TransportError, OSError) as fault:
        raise HubAway(f"{url} cannot be reached: {fault}") from fault
    except httpx2.InvalidURL as fault:
        raise Unusable(f"{url} is no URL of a hub: {fault}") from fault
    try:
        told = answer.json()
    except ValueError:
        told = None
    if answer.status_code >= 500 or answer.status_code == 429:
        raise HubAway(f"{url} answered {answer.status_code}: {answer.text[:200]}")
    if answer.status_code >= 300 or not isinstance(told, dict):
        error = told.get("error") if isinstance(told, dict) else None
        said = error if isinstance(error, dict) else {"message": answer.text[:200]}
        raise Unusable(
            f"{url} answered {answer.status_code}: {said.get('message', '')}",
            status=answer.status_code,
            code=str(said.get("code", "")),
        )
    return told
