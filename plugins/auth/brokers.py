"""Knows brokers by their HMAC signatures, and lets each of them do what a broker does: connect, and tell of itself."""

from __future__ import annotations

from collections.abc import Awaitable

from kernel import (
    CLOCK_WINDOW,
    BrokerAuthFailed,
    BrokerId,
    ClockSkew,
    Decision,
    Host,
    InvalidSignature,
    Page,
    Principal,
    ReplayDetected,
    Request,
    Resource,
    canonical_string,
    covered,
    hookimpl,
    is_nonce,
    is_signed,
    is_uuid,
    open_secret,
)

BROKER_ID = "x-scion-broker-id"
TIMESTAMP = "x-scion-timestamp"
NONCE = "x-scion-nonce"
SIGNATURE = "x-scion-signature"
LOOKED_AT = 50
"""Brokers in which a start looks for a secret that tells whether this hub's SESSION_SECRET is that of the database."""


class Plugin:
    api = 1

    def __init__(self) -> None:
        self._hub: Host

    @hookimpl
    async def on_start(self, hub: Host) -> None:
        """Raises: Misconfigured when the secrets that the database holds were sealed under another SESSION_SECRET."""
        self._hub = hub
        for broker in await hub.storage.list_brokers(Page(limit=LOOKED_AT)):
            for one in await hub.storage.broker_secrets(broker.id):
                open_secret(hub.keyring, one.sealed, broker.id, one.key_id)
                return

    @hookimpl
    def authenticate(self, request: Request) -> Awaitable[Principal] | None:
        """Only a request that names a broker waits for the database."""
        named = request.headers.get(BROKER_ID)
        return None if named is None else self._verified(BrokerId(named.strip().lower()), request)

    async def _verified(self, broker_id: BrokerId, request: Request) -> Principal:
        """Id, clock and nonce are looked at before the body is; the nonce is used up only by a good signature.

        Raises: BrokerAuthFailed, ClockSkew, InvalidSignature, ReplayDetected.
        """
        self._check_form(broker_id, request)
        key_id = await self._signer(broker_id, request)
        if not await self._hub.storage.use_nonce(broker_id, request.headers[NONCE]):
            raise ReplayDetected
        return Principal(kind="broker", id=broker_id, name=broker_id, claims={"keyId": key_id})

    def _check_form(self, broker_id: BrokerId, request: Request) -> None:
        if not is_uuid(broker_id):
            raise BrokerAuthFailed(f"X-Scion-Broker-ID is no UUID: {broker_id[:64]!r}")
        stamp = request.headers.get(TIMESTAMP, "")
        now = self._hub.clock.now() // 1_000_000
        if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
            raise ClockSkew("X-Scion-Timestamp is missing or no number of Unix seconds")
        if abs(int(stamp) - now) > CLOCK_WINDOW:
            raise ClockSkew(f"the timestamp is {int(stamp) - now:+d} s from the hub's clock: set the broker's clock")
        if not is_nonce(request.headers.get(NONCE, "")):
            raise InvalidSignature("X-Scion-Nonce is missing or no padded URL-safe base64 of 16 bytes")
        if not request.headers.get(SIGNATURE):
            raise InvalidSignature("X-Scion-Signature is missing")

    async def _signer(self, broker_id: BrokerId, request: Request) -> str:
        """The id of the key that signed: every live one is tried, so that a rotation has its grace."""
        storage, keyring = self._hub.storage, self._hub.keyring
        live = await storage.broker_secrets(broker_id)
        if not live:
            raise BrokerAuthFailed
        headers = request.headers
        canonical = canonical_string(
            request.method,
            request.path,
            request.query,
            headers[TIMESTAMP],
            headers[NONCE],
            covered(headers),
            await request.body(),
        )
        for one in live:
            if is_signed(open_secret(keyring, one.sealed, broker_id, one.key_id), canonical, headers[SIGNATURE]):
                return one.key_id
        raise InvalidSignature

    @hookimpl
    def authorize(self, principal: Principal, action: str, resource: Resource) -> Decision | None:
        if principal.kind != "broker":
            return None
        if action == "broker.connect":
            return Decision(allowed=True, reason="a broker may connect as itself")
        if action == "broker.heartbeat" and (resource.id or "").lower() == principal.id:
            return Decision(allowed=True, reason="a broker may tell of itself and its own agents")
        return Decision(allowed=False, reason=f"a broker may not do {action} to {resource.kind} {resource.id}")
