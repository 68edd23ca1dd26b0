"""Makes the tokens by which agents speak for themselves; who checks them is a plugin (design/contract.md, Edge)."""

from __future__ import annotations

import hashlib

from joserfc import jwt
from joserfc.jwk import OctKey

from kernel.agent import Agent
from kernel.clock import Clock
from kernel.keyring import AGENT_TOKENS, Keyring

AGENT_ISSUER = "pointsman"
AGENT_AUDIENCE = "pointsman-agent"
LIFETIME = 36_000
"""Seconds: ten hours."""
SCOPES = ("agent:status:update",)


def agent_key(keyring: Keyring) -> OctKey:
    """The key of this deployment's agent tokens; its `kid` tells one SESSION_SECRET's from another's."""
    secret = keyring.derive(AGENT_TOKENS)
    return OctKey.import_key(secret, {"kid": hashlib.sha256(secret).hexdigest()[:16], "alg": "HS256", "use": "sig"})


class Minter:
    """Mints one token for each run of an agent."""

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._key = agent_key(keyring)
        self._clock = clock

    def agent_token(self, agent: Agent, run_id: str) -> str:
        now = self._clock.now() // 1_000_000
        claims = {
            "iss": AGENT_ISSUER,
            "aud": AGENT_AUDIENCE,
            "sub": agent.id,
            "project_id": agent.project_id,
            "run_id": run_id,
            "scopes": list(SCOPES),
            "ancestry": agent.ancestry,
            "jti": self._clock.uuid4(),
            "iat": now,
            "nbf": now,
            "exp": now + LIFETIME,
        }
        return jwt.encode({"alg": "HS256", "kid": self._key.kid}, claims, self._key)
