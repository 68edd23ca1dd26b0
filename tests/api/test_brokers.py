"""Runtime brokers over HTTP."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.hubclient import HubClient, Json
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


def some(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


async def registered(api: HubClient, **body: object) -> Json:
    made: Json = (await api.ask("POST", "/brokers", {"name": some("broker"), **body})).expect(201).json
    return made


async def test_registering_gives_a_join_token_that_is_good_for_an_hour(api: HubClient) -> None:
    made = await registered(api)
    assert set(made) == {"brokerId", "joinToken", "expiresAt", "reregistered"}
    assert made["reregistered"] is False
    assert made["expiresAt"].endswith("Z")


async def test_a_broker_keeps_the_id_that_it_brings(api: HubClient) -> None:
    mine = str(uuid.uuid4())
    assert (await registered(api, brokerId=mine.upper()))["brokerId"] == mine


async def test_registering_again_gives_a_new_token_for_the_same_broker(api: HubClient) -> None:
    name = some("again")
    first = await registered(api, name=name)
    second = await registered(api, name=name)
    assert second["brokerId"] == first["brokerId"]
    assert second["reregistered"] is True
    assert second["joinToken"] != first["joinToken"]


async def test_joining_does_not_make_a_broker_online(api: HubClient) -> None:
    identity = await api.register_broker(labels={"zone": "a"})
    shown = await api.broker(identity["broker_id"])
    assert (shown["status"], shown["connectedAt"], shown["labels"]) == ("offline", None, {"zone": "a"})


async def test_a_broker_is_shown_with_what_its_socket_told(ours: Scene) -> None:
    shown = await ours.api.broker(ours.broker_id)
    assert set(shown) == {
        "id", "name", "slug", "status", "conflict", "paused", "version", "capabilities", "endpoint", "connectedHubId",
        "connectedAt", "lastHeartbeat", "lastSeen", "labels", "autoProvide", "created", "updated",
    }  # fmt: skip
    assert (shown["status"], shown["connectedHubId"]) == ("online", ours.hub.ready["nodeId"])
    assert "dedupe" in shown["capabilities"]
    assert (await ours.api.get(f"/runtime-brokers/{shown['name']}"))["id"] == ours.broker_id
    nodes = (await ours.api.get("/nodes"))["nodes"]
    assert [node["id"] for node in nodes] == [ours.hub.ready["nodeId"]]
    assert nodes[0]["brokers"] >= 1


async def test_a_broker_can_be_renamed_and_labelled(api: HubClient) -> None:
    broker = (await registered(api))["brokerId"]
    new = {"name": some("new name"), "labels": {"gpu": "yes"}, "autoProvide": True}
    edited = (await api.ask("PATCH", f"/runtime-brokers/{broker}", new)).expect(200).json
    assert {name: edited[name] for name in new} == new
    bad = (await api.ask("PATCH", f"/runtime-brokers/{broker}", {"name": " ", "labels": []})).expect(400)
    assert bad.code == "validation_error"


async def test_a_deleted_broker_is_gone(api: HubClient) -> None:
    broker = (await registered(api))["brokerId"]
    (await api.ask("DELETE", f"/runtime-brokers/{broker}")).expect(204)
    (await api.ask("GET", f"/runtime-brokers/{broker}")).expect(404)
    assert broker not in [one["id"] for one in (await api.get("/runtime-brokers", limit="200"))["brokers"]]


async def test_a_broker_with_agents_is_kept(ours: Scene) -> None:
    await ours.agent()
    answer = await ours.api.ask("DELETE", f"/runtime-brokers/{ours.broker_id}")
    assert answer.expect(409).code == "invalid_state"


async def test_a_paused_broker_is_sent_nothing_until_it_is_resumed(ours: Scene) -> None:
    agent = await ours.agent()
    paused = (await ours.api.ask("POST", f"/runtime-brokers/{ours.broker_id}/pause")).expect(200).json
    assert (paused["paused"], paused["status"]) == (True, "online")
    refused = (await ours.api.do("stop", agent["id"])).expect(503)
    assert refused.code == "runtime_broker_paused"
    assert int(refused.headers["retry-after"]) >= 1
    held = (await ours.api.message(agent["id"], "hello")).expect(202)
    assert (await ours.api.explain(held.dispatch))["code"] == "paused"
    (await ours.api.ask("POST", f"/runtime-brokers/{ours.broker_id}/resume")).expect(200)
    assert (await ours.api.ended(held.dispatch))["state"] == "done"


@pytest.mark.parametrize("path", ["/brokers", "/brokers/join"])
async def test_what_is_missing_is_named(api: HubClient, path: str) -> None:
    answer = (await api.ask("POST", path, {})).expect(400)
    wanted = {"/brokers": ["name"], "/brokers/join": ["brokerId", "joinToken"]}[path]
    assert list(answer.json["error"]["details"]["fields"]) == wanted


async def test_a_join_of_no_broker_is_told_like_a_wrong_token(api: HubClient) -> None:
    for broker in ("nobody", str(uuid.uuid4())):
        answer = await api.ask("POST", "/brokers/join", {"brokerId": broker, "joinToken": "x"})
        assert answer.expect(401).code == "invalid_join_token"


async def test_whatever_a_stock_broker_says_of_itself_at_the_join_does_no_harm(api: HubClient) -> None:
    made = await registered(api)
    join = {**made, "hostname": {"odd": 1}, "version": None, "capabilities": {"webPTY": True}, "profiles": 7}
    (await api.ask("POST", "/brokers/join", join)).expect(200)
