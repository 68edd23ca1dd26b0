"""Knows agents by the tokens that their starts carried, and lets each of them report its own status."""

from __future__ import annotations

from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from kernel import (
    AGENT_AUDIENCE,
    AGENT_ISSUER,
    Decision,
    Host,
    Principal,
    Request,
    Resource,
    Unauthenticated,
    agent_key,
    hookimpl,
)

HEADER = "x-scion-agent-token"
LEEWAY = 30
"""Seconds by which two hubs' clocks may differ."""
STATUS_SCOPE = "agent:status:update"


class Plugin:
    api = 1

    def __init__(self) -> None:
        self._hub: Host
        self._key: OctKey

    @hookimpl
    async def on_start(self, hub: Host) -> None:
        self._hub = hub
        self._key = agent_key(hub.keyring)

    @hookimpl
    def authenticate(self, request: Request) -> Principal | None:
        """Raises: Unauthenticated for a token of ours that is not, or no longer, good."""
        token = _token(request)
        if token is None:
            return None
        try:
            claims = self._claims(token)
        except (JoseError, ValueError) as fault:
            raise Unauthenticated(f"the agent's token is not good: {fault}") from fault
        return Principal(kind="agent", id=claims["sub"], name=claims["sub"], claims=claims)

    def _claims(self, token: str) -> dict[str, Any]:
        read = jwt.decode(token, self._key, algorithms=["HS256"])
        if read.header.get("kid") != self._key.kid:
            raise ValueError("it was made under another SESSION_SECRET")
        registry = jwt.JWTClaimsRegistry(
            now=self._hub.clock.now() // 1_000_000,
            leeway=LEEWAY,
            iss={"essential": True, "value": AGENT_ISSUER},
            aud={"essential": True, "value": AGENT_AUDIENCE},
            sub={"essential": True},
            exp={"essential": True},
            nbf={"essential": True},
        )
        registry.validate(read.claims)
        return dict(read.claims)

    @hookimpl
    def authorize(self, principal: Principal, action: str, resource: Resource) -> Decision | None:
        if principal.kind != "agent":
            return None
        if (
            action == "agent.status"
            and (resource.id or "").lower() == principal.id
            and STATUS_SCOPE in principal.claims.get("scopes", ())
        ):
            return Decision(allowed=True, reason="an agent may report its own status")
        return Decision(allowed=False, reason=f"an agent may not do {action} to {resource.kind} {resource.id}")


def _token(request: Request) -> str | None:
    """The header of its own; else a bearer that has the three parts of a JWT."""
    own = request.headers.get(HEADER)
    if own:
        return own.strip()
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" and bearer.count(".") == 2 else None
