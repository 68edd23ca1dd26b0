"""Who is let in, to what, how often; and how it is told."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.harness.hubprocess import CONFIG, HubProcess
from tests.harness.raw import exchange, request, upgrade

if TYPE_CHECKING:
    from tests.harness.hubclient import HubClient
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def hub_with(directory: Path, *, plugin: str = "", **settings: str) -> AsyncIterator[HubProcess]:
    """A hub of its own; `plugin` is the text of one that is asked before the built-in ones."""
    config = CONFIG
    if plugin:
        file = directory / "mine.py"
        file.write_text(plugin)
        config = CONFIG.replace("plugins:\n", f"plugins:\n  - use: {file}\n")
    named = {name.replace("__", "."): value for name, value in settings.items()}
    async with HubProcess(directory / "hub", settings=named, config=config) as own:
        yield own


# -- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mine", ["a" * 129, "tab\there", "ümlaut"])
async def test_a_request_id_that_is_none_is_replaced(hub: HubProcess, mine: str) -> None:
    got = await exchange(hub.url, request("GET", "/healthz", {"X-Request-Id": mine}))
    assert uuid.UUID(got.headers["x-request-id"]).version == 7


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_a_load_balancer_may_ask_with_head(hub: HubProcess, path: str) -> None:
    got = await exchange(hub.url, request("HEAD", path, {}))
    assert got.status == 200


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "TRACE"])
async def test_a_method_that_a_path_does_not_know_is_told_with_those_it_does(api: HubClient, method: str) -> None:
    answer = await api.ask(method, "/projects")
    assert answer.expect(405).code == "method_not_allowed"
    assert answer.headers["allow"] == "GET, POST"


async def test_a_method_that_nobody_knows_is_told(hub: HubProcess) -> None:
    got = await exchange(hub.url, request("BREW", "/api/v1/projects", {}))
    assert got.status in (400, 405)


async def test_401_comes_when_no_body_ever_does(hub: HubProcess) -> None:
    head = {"Content-Length": "1000", "Connection": "close"}
    with anyio.fail_after(20):
        got = await exchange(hub.url, request("POST", "/api/v1/projects", head))
    assert (got.status, got.code) == (401, "unauthorized")


# -- plugins that let in -------------------------------------------------------------------------------------

BREAKS = """
from kernel import hookimpl
api = 1

@hookimpl
async def authenticate(request):
    if "x-break" in request.headers:
        raise RuntimeError("broken")
    if "x-stranger" in request.headers:
        from kernel import Principal
        return Principal(kind="user", id="stranger", name="stranger", role="viewer")

@hookimpl
async def authorize(principal, action):
    if principal.id == "stranger" and action == "project.list":
        raise RuntimeError("broken")
"""


async def test_who_lets_in_fails_closed(tmp_path: Path) -> None:
    async with hub_with(tmp_path, plugin=BREAKS) as own:
        (await own.api.ask("GET", "/projects")).expect(200)
        for _ in range(10):
            broken = await own.api.ask("GET", "/projects", headers={"X-Break": "1"})
            assert broken.expect(401).code == "unauthorized"
        for path in ("/projects", "/agents"):
            denied = await own.api.ask("GET", path, headers={"X-Stranger": "1"})
            assert denied.expect(403).code == "forbidden"
        (await own.api.ask("GET", "/projects")).expect(200)


async def test_closed_metrics_ask_for_a_token(tmp_path: Path) -> None:
    async with hub_with(tmp_path, server__public_metrics="false") as own:
        assert (await exchange(own.url, request("GET", "/metrics", {}))).status == 401
        assert "pointsman_links" in (await own.api.ask("GET", "/metrics")).expect(200).text


# -- limits --------------------------------------------------------------------------------------------------


async def test_one_caller_has_a_limit(tmp_path: Path) -> None:
    async with hub_with(tmp_path, limits__requests="20/5s") as own:
        answers = [await own.api.ask("GET", "/projects") for _ in range(25)]
        over = [answer for answer in answers if answer.status == 429]
        assert over
        assert over[0].code == "rate_limited"
        assert 1 <= int(over[0].headers["retry-after"]) <= 5
        assert (await exchange(own.url, request("GET", "/healthz", {}))).status == 200


async def test_guessing_join_tokens_has_a_limit(tmp_path: Path) -> None:
    async with hub_with(tmp_path, limits__failed_joins="3/60s") as own:
        good = (await own.api.ask("POST", "/brokers", {"name": "good"})).expect(201).json
        for n in range(3):
            wrong = {"brokerId": str(uuid.uuid4()), "joinToken": f"guess-{n}"}
            (await own.api.ask("POST", "/brokers/join", wrong)).expect(401)
        joined = {"brokerId": good["brokerId"], "joinToken": good["joinToken"]}
        answer = await own.api.ask("POST", "/brokers/join", joined)
        assert answer.expect(429).code == "rate_limited"
        assert int(answer.headers["retry-after"]) >= 1


async def test_joining_well_is_not_counted_as_guessing(tmp_path: Path) -> None:
    async with hub_with(tmp_path, limits__failed_joins="3/60s") as own:
        for _ in range(6):
            await own.api.register_broker()


async def test_knocking_with_bad_signatures_has_a_limit(tmp_path: Path) -> None:
    async with hub_with(tmp_path, limits__failed_upgrades="3/60s") as own:
        for _ in range(3):
            assert (await upgrade(own.url, {})).status == 401
        got = await upgrade(own.url, {})
        assert (got.status, got.code) == (429, "rate_limited")
        assert int(got.headers["retry-after"]) >= 1
        scraped = (await own.api.ask("GET", "/metrics")).text
        assert 'pointsman_link_refused_total{code="401"} 3.0' in scraped
        assert 'pointsman_link_refused_total{code="429"} 1.0' in scraped


# -- agents' own tokens --------------------------------------------------------------------------------------


async def test_an_agents_token_opens_its_own_status_and_nothing_else(ours: Scene) -> None:
    agent, other = await ours.agent(), await ours.agent()
    sent = [event["json"] for event in ours.broker.events(what="request", op="create")]
    token = next(one["agentToken"] for one in sent if one["id"] == agent["id"])
    mine = {"Authorization": f"Bearer {token}"}
    status = {"activity": "thinking", "detail": {"toolName": "grep"}}
    (await ours.api.ask("POST", f"/agents/{agent['id']}/status", status, headers=mine)).expect(204)
    shown = await ours.api.agent(agent["id"])
    assert (shown["activity"], shown["detail"]["toolName"]) == ("thinking", "grep")
    for method, path in (
        ("POST", f"/agents/{other['id']}/status"),
        ("POST", f"/agents/{agent['id']}/stop"),
        ("GET", f"/agents/{agent['id']}"),
        ("DELETE", f"/agents/{agent['id']}"),
    ):
        assert (await ours.api.ask(method, path, {}, headers=mine)).expect(403).code == "forbidden"
    (await ours.api.ask("POST", f"/agents/{agent['id']}/status", status)).expect(403)


async def test_a_report_of_another_run_changes_nothing(ours: Scene) -> None:
    agent = await ours.agent()
    token = ours.broker.events(what="request", op="create")[0]["json"]["agentToken"]
    told = {"runId": str(uuid.uuid4()), "activity": "crashed", "phase": "error"}
    mine = {"X-Scion-Agent-Token": token, "Authorization": ""}
    (await ours.api.ask("POST", f"/agents/{agent['id']}/status", told, headers=mine)).expect(204)
    shown = await ours.api.agent(agent["id"])
    assert (shown["phase"], shown["activity"]) == ("running", agent["activity"])
