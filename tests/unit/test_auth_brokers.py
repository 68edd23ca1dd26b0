"""auth.brokers: HMAC signatures, every live key, a nonce once."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kernel.broker import Broker, BrokerId
from kernel.clock import Clock, Instant
from kernel.credentials import new_secret, seal_secret
from kernel.errors import BrokerAuthFailed, ClockSkew, InvalidSignature, Misconfigured, PayloadTooLarge, ReplayDetected
from kernel.keyring import Keyring
from kernel.session import Principal, Resource
from kernel.storage import Page, SealedSecret
from plugins.auth.brokers import Plugin
from tests.harness.signing import signed

pytestmark = pytest.mark.anyio

BROKER = "0193b8e4-0000-7000-8000-000000000001"
WITHOUT = "0193b8e4-0000-7000-8000-000000000002"
"""A broker that has no secret yet."""
NOW = 1_795_599_012
PATH = "/api/v1/runtime-brokers/connect"
KEYRING = Keyring("x" * 32)


class Held(Clock):
    def now(self) -> Instant:
        return Instant(NOW * 1_000_000)


class Secrets:
    """Sealed secrets and used nonces, as a storage keeps them."""

    def __init__(self, *secrets: bytes) -> None:
        self.live = [
            SealedSecret(key_id=f"key-{n}", sealed=seal_secret(KEYRING, secret, BROKER, f"key-{n}"))
            for n, secret in enumerate(secrets)
        ]
        self.used: set[tuple[str, str]] = set()

    async def list_brokers(self, _: Page) -> list[Broker]:
        return [
            Broker(id=BrokerId(one), name=one, slug=one) for one in ("018f0000-0000-7000-8000-000000000009", BROKER)
        ]

    async def broker_secrets(self, broker_id: str) -> list[SealedSecret]:
        return self.live if broker_id == BROKER else []

    async def use_nonce(self, broker_id: str, nonce: str) -> bool:
        fresh = (broker_id, nonce) not in self.used
        self.used.add((broker_id, nonce))
        return fresh


class Hub:
    def __init__(self, *secrets: bytes, keyring: Keyring = KEYRING) -> None:
        self.storage = Secrets(*secrets)
        self.keyring = keyring
        self.clock = Held()


class Asked:
    """A request, which says whether its body was looked at."""

    def __init__(self, headers: dict[str, str], *, method: str = "GET", path: str = PATH, body: bytes = b"") -> None:
        self.method, self.path, self.query = method, path, ""
        self.headers = {name.lower(): value for name, value in headers.items()}
        self._body = body
        self.read = False

    async def body(self) -> bytes:
        self.read = True
        if len(self._body) > 1_000:
            raise PayloadTooLarge
        return self._body


async def plugin_with(*secrets: bytes) -> tuple[Plugin, Hub]:
    hub, plugin = Hub(*secrets), Plugin()
    await plugin.on_start(cast("Any", hub))
    return plugin, hub


async def known(plugin: Plugin, asked: Asked) -> Principal | None:
    answering = plugin.authenticate(cast("Any", asked))
    return await answering if answering else None


def headers_of(secret: bytes, **more: Any) -> dict[str, str]:
    return signed(more.pop("broker_id", BROKER), secret, "GET", PATH, timestamp=more.pop("timestamp", NOW), **more)


async def test_a_good_signature_names_its_broker_and_its_key() -> None:
    secret = new_secret()
    plugin, _ = await plugin_with(secret)
    found = await known(plugin, Asked(headers_of(secret)))
    assert found == Principal(kind="broker", id=BROKER, name=BROKER, claims={"keyId": "key-0"})


async def test_a_hub_with_another_session_secret_does_not_start() -> None:
    """It would refuse every broker, and take what the other hubs sealed for damaged."""
    hub = Hub(new_secret(), keyring=Keyring("y" * 32))
    with pytest.raises(Misconfigured, match="another SESSION_SECRET"):
        await Plugin().on_start(cast("Any", hub))


async def test_every_live_key_is_tried() -> None:
    old, new = new_secret(), new_secret()
    plugin, _ = await plugin_with(new, old)
    found = await known(plugin, Asked(headers_of(old)))
    assert found is not None
    assert found.claims["keyId"] == "key-1"


async def test_an_id_in_capitals_is_the_same_broker() -> None:
    secret = new_secret()
    plugin, _ = await plugin_with(secret)
    found = await known(plugin, Asked(headers_of(secret, broker_id=BROKER.upper())))
    assert found is not None
    assert found.id == BROKER


async def test_without_a_broker_id_it_is_somebody_elses_request() -> None:
    plugin, _ = await plugin_with()
    assert await known(plugin, Asked({"Authorization": "Bearer x"})) is None


async def test_a_nonce_is_good_once() -> None:
    secret = new_secret()
    plugin, _ = await plugin_with(secret)
    headers = headers_of(secret)
    assert await known(plugin, Asked(headers))
    with pytest.raises(ReplayDetected):
        await known(plugin, Asked(headers))


async def test_a_bad_signature_uses_no_nonce_up() -> None:
    plugin, hub = await plugin_with(new_secret())
    with pytest.raises(InvalidSignature):
        await known(plugin, Asked(headers_of(new_secret())))
    assert hub.storage.used == set()


@pytest.mark.parametrize("change", [{"method": "POST"}, {"path": "/other"}, {"body": b"x"}])
async def test_what_is_signed_cannot_be_changed(change: dict[str, Any]) -> None:
    secret = new_secret()
    plugin, _ = await plugin_with(secret)
    with pytest.raises(InvalidSignature):
        await known(plugin, Asked(headers_of(secret), **change))


@pytest.mark.parametrize("off", [-301, 301])
async def test_a_clock_beyond_five_minutes_is_refused_before_the_body(off: int) -> None:
    secret = new_secret()
    plugin, _ = await plugin_with(secret)
    asked = Asked(headers_of(secret, timestamp=NOW + off))
    with pytest.raises(ClockSkew):
        await known(plugin, asked)
    assert not asked.read


@pytest.mark.parametrize("off", [-300, 300])
async def test_a_clock_within_five_minutes_is_good(off: int) -> None:
    secret = new_secret()
    plugin, _ = await plugin_with(secret)
    assert await known(plugin, Asked(headers_of(secret, timestamp=NOW + off)))


@pytest.mark.parametrize(
    ("header", "value", "error"),
    [
        ("X-Scion-Timestamp", "", ClockSkew),
        ("X-Scion-Timestamp", "1e9", ClockSkew),
        ("X-Scion-Timestamp", "9" * 5000, ClockSkew),
        ("X-Scion-Nonce", "short", InvalidSignature),
        ("X-Scion-Nonce", "AAAAAAAAAAAAAAAAAAAAAA", InvalidSignature),
        ("X-Scion-Signature", "", InvalidSignature),
        ("X-Scion-Signature", "ü", InvalidSignature),
        ("X-Scion-Broker-ID", "nobody", BrokerAuthFailed),
        ("X-Scion-Broker-ID", "0193b8e4-0000-7000-8000-000000000002", BrokerAuthFailed),
    ],
)
async def test_a_bad_header_is_told_by_its_code(header: str, value: str, error: type[Exception]) -> None:
    secret = new_secret()
    plugin, hub = await plugin_with(secret)
    with pytest.raises(error):
        await known(plugin, Asked({**headers_of(secret), header: value}))
    assert hub.storage.used == set()


async def test_an_unknown_broker_cannot_make_us_read_its_body() -> None:
    plugin, _ = await plugin_with()
    asked = Asked(headers_of(new_secret()))
    with pytest.raises(BrokerAuthFailed):
        await known(plugin, asked)
    assert not asked.read


async def test_a_body_over_the_limit_is_its_own_refusal() -> None:
    secret = new_secret()
    plugin, _ = await plugin_with(secret)
    with pytest.raises(PayloadTooLarge):
        await known(plugin, Asked(headers_of(secret, body=b"x"), body=b"x" * 2_000))


@pytest.mark.parametrize(
    ("action", "id", "allowed"),
    [
        ("broker.connect", None, True),
        ("broker.heartbeat", BROKER, True),
        ("broker.heartbeat", BROKER.upper(), True),
        ("broker.heartbeat", "another", False),
        ("broker.delete", BROKER, False),
        ("agent.list", None, False),
    ],
)
async def test_a_broker_may_do_what_brokers_do_for_itself_only(action: str, id: str | None, allowed: bool) -> None:
    plugin, _ = await plugin_with()
    broker = Principal(kind="broker", id=BROKER, name=BROKER)
    decision = plugin.authorize(broker, action, Resource(kind="broker", id=id))
    assert decision is not None
    assert decision.allowed is allowed


async def test_it_decides_nothing_about_others() -> None:
    plugin, _ = await plugin_with()
    assert plugin.authorize(Principal(kind="user", id="u", name="u"), "broker.connect", Resource(kind="broker")) is None
