"""auth.agents: tokens that a start carried, good for the agent's own status."""

from __future__ import annotations

from typing import Any, cast

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from kernel.agent import Agent, AgentId, Phase
from kernel.clock import Clock, Instant
from kernel.errors import Unauthenticated
from kernel.keyring import Keyring
from kernel.session import Principal, Resource
from kernel.tokens import LIFETIME, Minter, agent_key
from plugins.auth.agents import LEEWAY, Plugin

pytestmark = pytest.mark.anyio

KEYRING = Keyring("x" * 32)
AGENT = Agent(
    id=AgentId("0193b8e4-0000-7000-8000-000000000001"),
    slug="worker",
    name="worker",
    project_id="project-1",
    phase=Phase.STARTING,
    ancestry=["user-1"],
)


class Held(Clock):
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_795_599_012

    def now(self) -> Instant:
        return Instant(self.seconds * 1_000_000)


class Hub:
    def __init__(self, secret: str = "x" * 32) -> None:
        self.keyring = Keyring(secret)
        self.clock = Held()


class Asked:
    def __init__(self, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


async def plugin_of(hub: Hub) -> Plugin:
    plugin = Plugin()
    await plugin.on_start(cast("Any", hub))
    return plugin


async def known(plugin: Plugin, asked: Asked) -> Principal | None:
    return plugin.authenticate(cast("Any", asked))


def token_of(hub: Hub) -> str:
    return Minter(hub.keyring, hub.clock).agent_token(AGENT, "run-1")


async def test_a_token_names_its_agent_and_its_run() -> None:
    hub = Hub()
    plugin = await plugin_of(hub)
    for asked in (Asked(authorization=f"Bearer {token_of(hub)}"), Asked(x_scion_agent_token=token_of(hub))):
        found = await known(plugin, asked)
        assert found is not None
        assert (found.kind, found.id) == ("agent", AGENT.id)
        assert {name: found.claims[name] for name in ("iss", "aud", "project_id", "run_id", "scopes", "ancestry")} == {
            "iss": "pointsman",
            "aud": "pointsman-agent",
            "project_id": "project-1",
            "run_id": "run-1",
            "scopes": ["agent:status:update"],
            "ancestry": ["user-1"],
        }
        assert found.claims["exp"] - found.claims["iat"] == LIFETIME
        assert found.claims["jti"]


async def test_two_tokens_of_one_run_are_told_apart() -> None:
    hub = Hub()
    assert token_of(hub) != token_of(hub)


@pytest.mark.parametrize("header", ["Bearer plain", "Bearer a.b", "Basic a.b.c", ""])
async def test_what_is_no_jwt_is_somebody_elses(header: str) -> None:
    assert await known(await plugin_of(Hub()), Asked(authorization=header)) is None


async def test_no_token_is_somebody_elses() -> None:
    assert await known(await plugin_of(Hub()), Asked()) is None


async def test_after_ten_hours_it_is_over() -> None:
    hub = Hub()
    plugin, token = await plugin_of(hub), token_of(hub)
    hub.clock.seconds += LIFETIME + LEEWAY - 1
    assert await known(plugin, Asked(authorization=f"Bearer {token}"))
    hub.clock.seconds += 2
    with pytest.raises(Unauthenticated, match="expired"):
        await known(plugin, Asked(authorization=f"Bearer {token}"))


async def test_hubs_with_one_secret_know_each_others_tokens() -> None:
    assert await known(await plugin_of(Hub()), Asked(authorization=f"Bearer {token_of(Hub())}"))


async def test_another_secret_is_another_deployment() -> None:
    with pytest.raises(Unauthenticated):
        await known(await plugin_of(Hub("y" * 32)), Asked(authorization=f"Bearer {token_of(Hub())}"))


@pytest.mark.parametrize("token", ["a.b.c", "..", "é.b.c", "x" * 5000 + ".b.c"])
async def test_garbage_is_refused(token: str) -> None:
    with pytest.raises(Unauthenticated):
        await known(await plugin_of(Hub()), Asked(x_scion_agent_token=token))


def forged(**changes: Any) -> str:
    claims = {"iss": "pointsman", "aud": "pointsman-agent", "sub": AGENT.id, "nbf": 0, "exp": 9_999_999_999, **changes}
    key = agent_key(KEYRING)
    return jwt.encode(
        {"alg": "HS256", "kid": key.kid}, {name: value for name, value in claims.items() if value is not None}, key
    )


@pytest.mark.parametrize(
    "changes",
    [{"iss": "scion-hub"}, {"aud": "pointsman-user"}, {"sub": None}, {"exp": None}, {"exp": 1}, {"nbf": 9_999_999_999}],
)
async def test_every_claim_is_looked_at(changes: dict[str, Any]) -> None:
    plugin = await plugin_of(Hub())
    assert await known(plugin, Asked(authorization=f"Bearer {forged()}"))
    with pytest.raises(Unauthenticated):
        await known(plugin, Asked(authorization=f"Bearer {forged(**changes)}"))


async def test_no_other_algorithm_is_taken() -> None:
    key = OctKey.import_key(KEYRING.derive("pointsman/jwt/agent"))
    claims = {"iss": "pointsman", "aud": "pointsman-agent", "sub": AGENT.id, "nbf": 0, "exp": 9_999_999_999}
    other = jwt.encode({"alg": "HS512", "kid": agent_key(KEYRING).kid}, claims, key, algorithms=["HS512"])
    with pytest.raises(Unauthenticated):
        await known(await plugin_of(Hub()), Asked(authorization=f"Bearer {other}"))


SCOPED = {"scopes": ["agent:status:update"]}


@pytest.mark.parametrize(
    ("action", "id", "claims", "allowed"),
    [
        ("agent.status", AGENT.id, SCOPED, True),
        ("agent.status", AGENT.id.upper(), SCOPED, True),
        ("agent.status", "another", SCOPED, False),
        ("agent.status", AGENT.slug, SCOPED, False),
        ("agent.status", AGENT.id, {"scopes": []}, False),
        ("agent.delete", AGENT.id, SCOPED, False),
    ],
)
async def test_an_agent_may_report_its_own_status_and_nothing_else(
    action: str, id: str, claims: dict[str, Any], allowed: bool
) -> None:
    plugin = await plugin_of(Hub())
    agent = Principal(kind="agent", id=AGENT.id, name=AGENT.id, claims=claims)
    decision = plugin.authorize(agent, action, Resource(kind="agent", id=id))
    assert decision is not None
    assert decision.allowed is allowed


async def test_it_decides_nothing_about_others() -> None:
    plugin = await plugin_of(Hub())
    user = Principal(kind="user", id=AGENT.id, name="u")
    assert plugin.authorize(user, "agent.status", Resource(kind="agent", id=AGENT.id)) is None
