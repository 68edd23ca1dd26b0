"""Agents over HTTP: which broker runs them, how they are shown, edited and deleted."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.brokerprocess import BrokerProcess
from tests.harness.hubprocess import CONFIG, HubProcess
from tests.harness.scenes import Scene, own_scene, scene

if TYPE_CHECKING:
    from tests.harness.hubclient import HubClient

pytestmark = pytest.mark.anyio


# -- placement -----------------------------------------------------------------------------------------------


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Scene]:
    async with own_scene(tmp_path) as made:
        yield made


async def test_the_only_connected_broker_is_chosen(alone: Scene) -> None:
    made = (await alone.api.post_agent(alone.project, None)).expect(201).json["agent"]
    assert made["runtimeBrokerId"] == alone.broker_id


async def test_of_several_none_is_chosen_and_all_are_listed(alone: Scene) -> None:
    async with await alone.other_broker("second") as second:
        await alone.api.broker_is(second.broker_id, "online")
        answer = (await alone.api.post_agent(alone.project, None)).expect(422)
        assert answer.code == "no_runtime_broker"
        listed = answer.json["error"]["details"]["availableBrokers"]
        assert {one["id"] for one in listed} == {alone.broker_id, second.broker_id}
        assert {one["status"] for one in listed} == {"online"}
        assert answer.json["error"]["message"] == "2 brokers could run it: name one with runtimeBrokerId"
        for ref in (second.broker_id, (await alone.api.broker(second.broker_id))["slug"]):
            made = (await alone.api.post_agent(alone.project, ref)).expect(201).json["agent"]
            assert made["runtimeBrokerId"] == second.broker_id


async def test_without_any_broker_nothing_is_made(alone: Scene) -> None:
    await alone.offline()
    answer = (await alone.api.post_agent(alone.project, None)).expect(422)
    assert answer.code == "no_runtime_broker"
    start = "no broker is connected: start one (`pointsman broker run`)"
    hold = "store it until then with `Prefer: deliver=hold` (`--hold`)"
    assert answer.json["error"]["message"] == f"{start}, or {hold}"
    held = await alone.api.post_agent(alone.project, None, headers={"Prefer": "deliver=hold"})
    assert held.expect(202).headers["location"] == f"/api/v1/dispatches/{held.dispatch}"
    refused = (await alone.api.post_agent(alone.project, alone.broker_id)).expect(503)
    assert refused.code == "runtime_broker_unavailable"
    assert len((await alone.api.get("/agents"))["agents"]) == 1
    await alone.online()
    assert (await alone.api.ended(held.dispatch))["state"] == "done"


async def test_a_project_has_a_broker_of_its_own_choice(alone: Scene) -> None:
    async with await alone.other_broker("second") as second:
        await alone.api.broker_is(second.broker_id, "online")
        body = {"name": f"p-{uuid.uuid4().hex[:8]}", "defaultRuntimeBrokerId": second.broker_id}
        project = (await alone.api.ask("POST", "/projects", body)).expect(201).json["id"]
        made = (await alone.api.post_agent(project, None)).expect(201).json["agent"]
        assert made["runtimeBrokerId"] == second.broker_id
        await second.disconnect()
        await alone.api.broker_is(second.broker_id, "offline")
        answer = (await alone.api.post_agent(project, None)).expect(422)
        assert "start it, or store it until then" in answer.json["error"]["message"]
        assert "or name one that is with runtimeBrokerId" in answer.json["error"]["message"]
        assert alone.broker_id in [one["id"] for one in answer.json["error"]["details"]["availableBrokers"]]


async def test_a_broker_that_was_named_becomes_a_provider(alone: Scene) -> None:
    identity = await alone.api.register_broker(autoProvide=False)
    await alone.offline()
    headers = {"Prefer": "deliver=hold"}
    (await alone.api.post_agent(alone.project, identity["broker_id"], headers=headers)).expect(202)
    answer = (await alone.api.post_agent(alone.project, None)).expect(422)
    assert identity["broker_id"] in [one["id"] for one in answer.json["error"]["details"]["availableBrokers"]]
    other = await alone.api.create_project()
    answer = (await alone.api.post_agent(other, None)).expect(422)
    assert identity["broker_id"] not in [one["id"] for one in answer.json["error"]["details"]["availableBrokers"]]


async def test_a_broker_that_serves_nobody_by_itself_is_offered_by_name(tmp_path: Path) -> None:
    async with HubProcess(tmp_path / "hub") as hub:
        project = await hub.api.create_project()
        nobody = (await hub.api.post_agent(project, None)).expect(422)
        assert nobody.json["error"]["message"] == "no broker is connected: start one (`pointsman broker run`)"
        identity = await hub.api.register_broker(autoProvide=False)
        async with BrokerProcess(tmp_path / "broker", urls=[hub.url], **identity) as broker:
            await hub.api.broker_is(broker.broker_id, "online")
            answer = (await hub.api.post_agent(project, None)).expect(422)
            assert "name one that is with runtimeBrokerId" in answer.json["error"]["message"]
            assert [one["id"] for one in answer.json["error"]["details"]["availableBrokers"]] == [broker.broker_id]
            (await hub.api.post_agent(project, broker.broker_id)).expect(201)


LAST = """
from kernel import hookimpl
api = 1

@hookimpl
def rank_brokers(request):
    if "nonsense" in request.labels:
        return ("nobody",)
    return tuple(sorted(request.candidates, key=lambda broker: broker.name, reverse=True))
"""


@asynccontextmanager
async def ranked(directory: Path) -> AsyncIterator[tuple[HubClient, Scene, Scene]]:
    file = directory / "last.py"
    file.write_text(LAST)
    config = CONFIG.replace("plugins:\n", f"plugins:\n  - use: {file}\n")
    async with (
        HubProcess(directory / "hub", config=config) as hub,
        scene(hub, hub.api, directory / "one") as one,
        scene(hub, hub.api, directory / "two") as two,
    ):
        yield hub.api, one, two


async def test_a_placement_plugin_chooses_among_those_that_can_be_reached(tmp_path: Path) -> None:
    async with ranked(tmp_path) as (api, one, two):
        names = {scene.broker_id: (await api.broker(scene.broker_id))["name"] for scene in (one, two)}
        best, other = sorted(names, key=lambda id: names[id], reverse=True)
        made = (await api.post_agent(one.project, None)).expect(201).json["agent"]
        assert made["runtimeBrokerId"] == best
        await (one if one.broker_id == best else two).offline()
        made = (await api.post_agent(one.project, None)).expect(201).json["agent"]
        assert made["runtimeBrokerId"] == other


async def test_nonsense_from_a_placement_plugin_is_counted_and_skipped(tmp_path: Path) -> None:
    async with ranked(tmp_path) as (api, one, _):
        answer = await api.post_agent(one.project, None, labels={"nonsense": "yes"})
        assert answer.expect(422).code == "no_runtime_broker"
        rows = (await api.get("/plugins"))["plugins"]
        assert rows[0]["faults"] == 1
        assert rows[0]["hooks"][0]["lastFault"]


# -- making --------------------------------------------------------------------------------------------------


async def test_a_new_agent_is_shown_with_everything_known_of_it(ours: Scene) -> None:
    body: dict[str, Any] = {
        "labels": {"a": "b"},
        "annotations": {"c": "d"},
        "config": {"x": [1]},
        "template": "t",
        "task": "dig",
    }
    answer = (await ours.api.post_agent(ours.project, ours.broker_id, "Ada Lovelace", **body)).expect(201)
    agent = answer.json["agent"]
    assert set(agent) == {
        "id", "slug", "name", "projectId", "runtimeBrokerId", "phase", "activity", "runId", "stateVersion", "template",
        "image", "runtime", "taskSummary", "message", "labels", "annotations", "config", "detail", "createdBy",
        "ownerId", "ancestry", "created", "updated", "lastSeen", "startedAt", "deletedAt",
    }  # fmt: skip
    assert (agent["slug"], agent["name"], agent["labels"], agent["config"]) == (
        "ada-lovelace", "Ada Lovelace", {"a": "b"}, {"x": [1]},
    )  # fmt: skip
    assert agent["ancestry"] == [agent["createdBy"]]
    assert await ours.api.agent(agent["id"]) == agent
    sent = ours.broker.events(what="request", op="create")[0]["json"]
    assert (sent["config"]["task"], sent["config"]["template"]) == ("dig", "t")


async def test_a_slug_belongs_to_one_live_agent_of_a_project(ours: Scene) -> None:
    agent = await ours.agent("One")
    again = await ours.api.post_agent(ours.project, ours.broker_id, "one!")
    assert again.expect(409).code == "already_exists"
    (await ours.api.delete(agent["id"])).expect(204)
    assert (await ours.agent("One"))["id"] != agent["id"]


@pytest.mark.parametrize("name", ["", "   ", "…", "x" * 300, "a\u0000b", "line\nbreak"])
async def test_a_name_that_makes_no_slug_is_refused(ours: Scene, name: str) -> None:
    answer = (await ours.api.post_agent(ours.project, ours.broker_id, name or " ")).expect(400)
    assert (answer.code, list(answer.json["error"]["details"]["fields"])) == ("validation_error", ["name"])


async def test_an_agent_is_reached_through_its_project_under_both_names(ours: Scene) -> None:
    project = await ours.api.get(f"/projects/{ours.project}")
    body = {"name": "inside", "config": {"command": ["true"]}, "runtimeBrokerId": ours.broker_id}
    made = (await ours.api.ask("POST", f"/projects/{project['slug']}/agents", body)).expect(201).json["agent"]
    for base in (f"/projects/{project['slug']}", f"/groves/{project['id']}"):
        assert await ours.api.get(f"{base}/agents/inside") == made
        assert await ours.api.get(f"{base}/agents/{made['id']}") == made
        assert (await ours.api.get(f"{base}/agents"))["agents"] == [made]
    stopped = (await ours.api.ask("POST", f"/groves/{project['slug']}/agents/inside/stop")).expect(200)
    assert stopped.json["phase"] == "stopped"
    elsewhere = await ours.api.create_project()
    for ref in ("inside", made["id"]):
        (await ours.api.ask("GET", f"/projects/{elsewhere}/agents/{ref}")).expect(404)
    (await ours.api.ask("GET", "/agents/inside")).expect(404)


async def test_lists_are_filtered(ours: Scene) -> None:
    one, two = await ours.agent(), await ours.agent()
    (await ours.api.do("stop", two["id"])).expect(200)

    async def ids(**query: str) -> list[str]:
        page = await ours.api.get("/agents", projectId=ours.project, **query)
        assert page["totalCount"] == len(page["agents"])
        return [agent["id"] for agent in page["agents"]]

    assert await ids() == [two["id"], one["id"]]
    assert await ids(phase="stopped") == [two["id"]]
    assert await ids(runtimeBrokerId=str(uuid.uuid4())) == []
    (await ours.api.delete(one["id"])).expect(204)
    assert await ids() == [two["id"]]
    assert await ids(includeDeleted="true") == [two["id"], one["id"]]
    assert (await ours.api.ask("GET", "/agents", params={"phase": "asleep"})).expect(400).code == "validation_error"


# -- editing -------------------------------------------------------------------------------------------------


async def test_what_may_be_edited_is(ours: Scene) -> None:
    agent = await ours.agent()
    new: dict[str, Any] = {
        "name": "New Name", "labels": {"x": "y"}, "annotations": {}, "taskSummary": "digging", "config": {"z": None},
    }  # fmt: skip
    edited = (await ours.api.ask("PATCH", f"/agents/{agent['id']}", new)).expect(200).json
    assert {name: edited[name] for name in new} == new
    assert (edited["slug"], edited["stateVersion"] > agent["stateVersion"]) == (agent["slug"], True)


async def test_an_etag_guards_an_edit(ours: Scene) -> None:
    agent = await ours.agent()
    path = f"/agents/{agent['id']}"
    shown = (await ours.api.ask("GET", path)).expect(200).headers["etag"]
    match = {"If-Match": shown}
    (await ours.api.ask("PATCH", path, {"name": "first"}, headers=match)).expect(200)
    assert (await ours.api.ask("PATCH", path, {"name": "second"}, headers=match)).expect(409).code == "version_conflict"
    (await ours.api.ask("PATCH", path, {"name": "third"}, headers={"If-Match": "*"})).expect(200)
    assert (await ours.api.ask("PATCH", path, {}, headers={"If-Match": "old"})).expect(400).code == "validation_error"


# -- deleting ------------------------------------------------------------------------------------------------


async def test_a_deleted_agent_is_shown_and_nothing_more_is_done_to_it(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await ours.api.delete(agent["id"])).expect(204)
    assert answer.text == ""
    assert answer.dispatch
    assert (await ours.api.agent(agent["id"]))["deletedAt"]
    path = f"/agents/{agent['id']}"
    for method, more, body in (
        ("POST", "/start", None), ("POST", "/stop", None), ("POST", "/message", {"message": "x"}),
        ("POST", "/env", {"env": {}}), ("GET", "/has-prompt", None), ("GET", "/logs", None), ("DELETE", "", None),
        ("PATCH", "", {"name": "x"}),
    ):  # fmt: skip
        assert (await ours.api.ask(method, path + more, body)).expect(409).code == "invalid_state", (method, more)


@pytest.mark.parametrize(
    ("query", "flags"),
    [({}, {"deleteFiles": "true", "removeBranch": "true"}), ({"deleteFiles": "false"}, {"deleteFiles": "false"})],
)
async def test_what_a_deletion_takes_along_is_told_to_the_broker(
    ours: Scene, query: dict[str, str], flags: dict[str, str]
) -> None:
    agent = await ours.agent()
    (await ours.api.ask("DELETE", f"/agents/{agent['id']}", params=query)).expect(204)
    sent = ours.broker.events(what="request", op="delete")[0]["query"]
    assert all(f"{name}={value}" in sent for name, value in flags.items())


# -- asking --------------------------------------------------------------------------------------------------


async def test_logs_come_from_the_broker(ours: Scene) -> None:
    agent = await ours.agent()
    answer = await ours.api.ask("GET", f"/agents/{agent['id']}/logs", params={"tail": "5"})
    assert isinstance(answer.expect(200).json["logs"], str)
    bad = await ours.api.ask("GET", f"/agents/{agent['id']}/logs", params={"tail": "0"})
    assert bad.expect(400).code == "validation_error"
    await ours.offline()
    answer = await ours.api.ask("GET", f"/agents/{agent['id']}/logs")
    assert answer.expect(503).code == "runtime_broker_unavailable"


async def test_has_prompt_is_asked_of_the_broker(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await ours.api.ask("GET", f"/agents/{agent['id']}/has-prompt")).expect(200)
    assert isinstance(answer.json["hasPrompt"], bool)
    assert answer.dispatch


async def test_a_version_beyond_all_bounds_is_refused(ours: Scene) -> None:
    agent = await ours.quiet_agent()
    answer = await ours.api.ask("PATCH", f"/agents/{agent['id']}", {"name": "x", "stateVersion": 10**30})
    assert list(answer.expect(400).json["error"]["details"]["fields"]) == ["stateVersion"]
