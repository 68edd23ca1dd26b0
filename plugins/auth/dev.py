"""One fixed user with every right, known by one token: for a hub that only its own machine can reach."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from pathlib import Path

import msgspec

from kernel import (
    Decision,
    Finding,
    Host,
    Level,
    Misconfigured,
    Principal,
    Request,
    Resource,
    Settings,
    User,
    hookimpl,
)

USER = User(
    id="be67fbc9-c869-5d43-b15d-c28ca3e8d355",
    email="dev@localhost",
    display_name="Developer",
    role="admin",
)
VARIABLE = "POINTSMAN_DEV_TOKEN"
PREFIX = "pm_dev_"


class DevConfig(msgspec.Struct, frozen=True, kw_only=True):
    token_file: str = "var/dev-token"  # noqa: S105 - where it is kept
    """Where the token is kept that was made at the first start; POINTSMAN_DEV_TOKEN goes before it."""


class Plugin:
    api = 1
    Config = DevConfig

    def __init__(self, config: DevConfig) -> None:
        self._token_file = Path(config.token_file)
        self._token = ""

    @hookimpl
    def diagnose(self, config: Settings) -> list[Finding]:
        return [_reach(config.server.host)]

    @hookimpl
    async def on_start(self, hub: Host) -> None:
        """Raises: Misconfigured when others than this machine could reach the hub."""
        found = _reach(hub.settings.server.host)
        if found.fix:
            raise Misconfigured(str(found))
        self._token = os.environ.get(VARIABLE, "").strip() or _kept(self._token_file)
        await hub.storage.ensure_user(USER)

    @hookimpl
    def offer_token(self) -> str | None:
        return self._token or None

    @hookimpl
    def authenticate(self, request: Request) -> Principal | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._is_mine(token.strip()):
            return None
        return Principal(kind="user", id=USER.id, name=USER.email, role=USER.role)

    def _is_mine(self, token: str) -> bool:
        return bool(self._token) and hmac.compare_digest(token.encode(), self._token.encode())

    @hookimpl
    def authorize(self, principal: Principal, action: str, resource: Resource) -> Decision | None:
        if principal.kind != "user" or principal.id != USER.id:
            return None
        return Decision(allowed=True, reason="the developer may do everything")


def _reach(host: str) -> Finding:
    """Who could reach a hub that listens there."""
    if _is_loopback(host):
        return Finding(check="auth.dev", told=f"only this machine reaches {host}")
    return Finding(
        check="auth.dev",
        level=Level.FAIL,
        told=(
            f"auth.dev makes whoever has its one token an administrator, so it starts on loopback only; found "
            f"`server.host: {host}`"
        ),
        fix="write `host: 127.0.0.1` there, or take `- use: auth.dev` out of `plugins:`",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _kept(file: Path) -> str:
    """The token in `file`, made once: of two who start at the same time both read what one of them wrote."""
    try:
        if not file.exists() or not file.read_text().strip():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make(file)
        return file.read_text().strip()
    except OSError as fault:
        raise Misconfigured(f"auth.dev cannot keep its token in {file}: {fault.strerror}; set {VARIABLE}") from fault


def _make(file: Path) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(f"{PREFIX}{secrets.token_hex(32)}\n")
    try:
        if file.exists():
            file.unlink()
        os.link(part, file)
    except FileExistsError:
        pass
    finally:
        part.unlink()
