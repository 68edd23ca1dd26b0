"""The upgrade is refused with real HTTP answers: signature, clock, nonce, identity."""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.raw import exchange, request, upgrade
from tests.harness.scenes import own_scene
from tests.harness.signing import new_nonce, signed
from tests.harness.sockets import CONNECT_PATH

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.hubclient import HubClient
    from tests.harness.hubprocess import HubProcess

pytestmark = pytest.mark.anyio


@pytest.fixture
async def identity(api: HubClient) -> dict[str, Any]:
    return await api.register_broker()


def headers_of(identity: dict[str, Any], **more: Any) -> dict[str, str]:
    secret = more.pop("secret", base64.b64decode(identity["secret"]))
    return signed(more.pop("broker_id", identity["broker_id"]), secret, "GET", CONNECT_PATH, **more)


async def refused(hub: HubProcess, headers: dict[str, str], code: str, **more: Any) -> None:
    got = await upgrade(hub.url, headers, **more)
    assert (got.status, got.code) == (401, code)
    assert got.headers["content-type"].startswith("application/json")
    assert got.json["error"]["message"]


async def test_a_good_signature_is_upgraded(hub: HubProcess, identity: dict[str, Any]) -> None:
    assert (await upgrade(hub.url, headers_of(identity))).status == 101


async def test_further_headers_may_be_signed(hub: HubProcess, identity: dict[str, Any]) -> None:
    headers = headers_of(identity, cover={"X-Extra": "  spaces  ", "X-Second": "b"})
    assert (await upgrade(hub.url, headers)).status == 101
    changed = headers_of(identity, cover={"X-Extra": "a"}) | {"X-Extra": "b"}
    await refused(hub, changed, "invalid_signature")


async def test_a_query_is_part_of_what_is_signed(hub: HubProcess, identity: dict[str, Any]) -> None:
    assert (await upgrade(hub.url, headers_of(identity, query="a=b%20c"), query="a=b%20c")).status == 101
    await refused(hub, headers_of(identity), "invalid_signature", query="a=b")


async def test_no_headers_at_all(hub: HubProcess) -> None:
    got = await upgrade(hub.url, {})
    assert got.status == 401
    assert got.json["error"]["code"]


@pytest.mark.parametrize("missing", ["X-Scion-Timestamp", "X-Scion-Nonce", "X-Scion-Signature", "X-Scion-Broker-ID"])
async def test_a_stripped_header(hub: HubProcess, identity: dict[str, Any], missing: str) -> None:
    headers = headers_of(identity)
    del headers[missing]
    got = await upgrade(hub.url, headers)
    assert got.status == 401
    assert got.json["error"]["code"]


async def test_a_wrong_secret(hub: HubProcess, identity: dict[str, Any]) -> None:
    await refused(hub, headers_of(identity, secret=os.urandom(32)), "invalid_signature")


@pytest.mark.parametrize("signature", ["", "AAAA", "not base64 !", "ü" * 10])
async def test_a_malformed_signature(hub: HubProcess, identity: dict[str, Any], signature: str) -> None:
    headers = headers_of(identity) | {"X-Scion-Signature": signature.encode().decode("latin-1")}
    got = await upgrade(hub.url, headers)
    assert got.status == 401


@pytest.mark.parametrize("broker_id", ["0193b8e4-0000-7000-8000-00000000beef", "not-a-uuid", "x" * 500])
async def test_an_unknown_broker(hub: HubProcess, identity: dict[str, Any], broker_id: str) -> None:
    await refused(hub, headers_of(identity, broker_id=broker_id), "broker_auth_failed")


@pytest.mark.parametrize("off", [-400, 400, -(10**9)])
async def test_a_clock_more_than_five_minutes_off(hub: HubProcess, identity: dict[str, Any], off: int) -> None:
    await refused(hub, headers_of(identity, timestamp=int(time.time()) + off), "clock_skew")


@pytest.mark.parametrize("off", [-240, 240])
async def test_a_clock_within_five_minutes(hub: HubProcess, identity: dict[str, Any], off: int) -> None:
    assert (await upgrade(hub.url, headers_of(identity, timestamp=int(time.time()) + off))).status == 101


@pytest.mark.parametrize("stamp", ["", "now", "1e9", "-5", "9" * 40, "２０２６"])
async def test_a_timestamp_that_is_no_number(hub: HubProcess, identity: dict[str, Any], stamp: str) -> None:
    headers = headers_of(identity) | {"X-Scion-Timestamp": stamp.encode().decode("latin-1")}
    assert (await upgrade(hub.url, headers)).status == 401


@pytest.mark.parametrize("nonce", ["short", "x" * 300, "AAECAwQFBgcICQoLDA0ODw"])
async def test_a_malformed_nonce(hub: HubProcess, identity: dict[str, Any], nonce: str) -> None:
    assert (await upgrade(hub.url, headers_of(identity, nonce=nonce))).status == 401


async def test_a_replayed_nonce(hub: HubProcess, identity: dict[str, Any]) -> None:
    headers = headers_of(identity)
    assert (await upgrade(hub.url, headers)).status == 101
    await refused(hub, headers, "replay_detected")


async def test_a_nonce_is_remembered_for_each_broker_apart(hub: HubProcess, api: HubClient) -> None:
    nonce = new_nonce()
    for identity in (await api.register_broker(), await api.register_broker()):
        assert (await upgrade(hub.url, headers_of(identity, nonce=nonce))).status == 101


async def test_a_bad_signature_does_not_burn_the_nonce(hub: HubProcess, identity: dict[str, Any]) -> None:
    nonce = new_nonce()
    await refused(hub, headers_of(identity, nonce=nonce, secret=os.urandom(32)), "invalid_signature")
    assert (await upgrade(hub.url, headers_of(identity, nonce=nonce))).status == 101


async def test_a_replay_to_another_route_and_after_a_restart(tmp_path: Path) -> None:
    async with own_scene(tmp_path, auto=False) as alone:
        path = f"/api/v1/runtime-brokers/{alone.broker_id}/heartbeat"
        body = json.dumps({"status": "online"}).encode()
        secret = base64.b64decode(alone.broker.settings["secret"])
        headers = signed(alone.broker_id, secret, "POST", path, body=body) | {"Content-Type": "application/json"}
        sent = request("POST", path, headers, body)
        assert (await exchange(alone.hub.url, sent)).status == 200
        alone.hub.kill()
        await alone.hub.restart()
        got = await exchange(alone.hub.url, sent)
        assert (got.status, got.code) == (401, "replay_detected")


async def test_a_changed_body_is_refused(hub: HubProcess, identity: dict[str, Any]) -> None:
    path = f"/api/v1/runtime-brokers/{identity['broker_id']}/heartbeat"
    headers = signed(identity["broker_id"], base64.b64decode(identity["secret"]), "POST", path, body=b"{}")
    got = await exchange(hub.url, request("POST", path, headers, b'{"status":"x"}'))
    assert (got.status, got.code) == (401, "invalid_signature")


async def test_a_heartbeat_for_another_broker_is_refused(hub: HubProcess, api: HubClient) -> None:
    mine, other = await api.register_broker(), await api.register_broker()
    path = f"/api/v1/runtime-brokers/{other['broker_id']}/heartbeat"
    headers = signed(mine["broker_id"], base64.b64decode(mine["secret"]), "POST", path, body=b"{}")
    assert (await exchange(hub.url, request("POST", path, headers, b"{}"))).status in (401, 403)


async def test_a_join_token_is_good_once(api: HubClient) -> None:
    made = (await api.ask("POST", "/brokers", {"name": f"b-{uuid.uuid4()}"})).expect(201).json
    join = {"brokerId": made["brokerId"], "joinToken": made["joinToken"]}
    (await api.ask("POST", "/brokers/join", join)).expect(200)
    assert (await api.ask("POST", "/brokers/join", join)).expect(401).code == "invalid_join_token"
    wrong = {**join, "joinToken": "scion_join_wrong"}
    assert (await api.ask("POST", "/brokers/join", wrong)).expect(401).code == "invalid_join_token"


async def test_joining_needs_no_other_token(hub: HubProcess, api: HubClient) -> None:
    made = (await api.ask("POST", "/brokers", {"name": f"b-{uuid.uuid4()}"})).expect(201).json
    join = json.dumps({"brokerId": made["brokerId"], "joinToken": made["joinToken"]}).encode()
    got = await exchange(hub.url, request("POST", "/api/v1/brokers/join", {"Content-Type": "application/json"}, join))
    assert got.status == 200


async def test_a_plain_request_to_the_socket_route_is_answered(hub: HubProcess, identity: dict[str, Any]) -> None:
    got = await exchange(hub.url, request("GET", CONNECT_PATH, headers_of(identity)))
    assert got.status in (400, 404, 405, 426)
    assert got.json["error"]["code"]


async def test_an_upgrade_elsewhere_is_refused(hub: HubProcess, identity: dict[str, Any]) -> None:
    got = await upgrade(hub.url, headers_of(identity), path="/api/v1/nothing")
    assert (got.status, got.code) == (404, "not_found")


async def test_a_deleted_broker_is_closed_and_may_not_return(api: HubClient, tmp_path: Path, hub: HubProcess) -> None:
    from tests.harness.brokerprocess import BrokerProcess

    identity = await api.register_broker()
    async with BrokerProcess(tmp_path / "b", urls=[hub.url], **identity) as broker:
        await broker.seen(what="connected")
        (await api.ask("DELETE", f"/runtime-brokers/{identity['broker_id']}")).expect(204)
        assert (await broker.seen(what="closed"))["code"] == 4410
        again = await broker.seen(what="refused")
        assert (again["status"], again["body"]["error"]["code"]) == (401, "broker_auth_failed")
