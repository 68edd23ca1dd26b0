"""Projects over HTTP."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.hubclient import Answered, HubClient
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


def some(name: str) -> str:
    return f"{name} {uuid.uuid4().hex[:8]}"


async def post(api: HubClient, **body: object) -> Answered:
    return await api.ask("POST", "/projects", body)


async def test_a_project_is_found_by_id_and_by_slug_under_both_names(api: HubClient) -> None:
    name = some("Größe Eins")
    made = (await post(api, name=name, labels={"a": "b"}, gitRemote="git@x:y")).expect(201).json
    assert (made["name"], made["labels"], made["gitRemote"]) == (name, {"a": "b"}, "git@x:y")
    for path in ("projects", "groves"):
        for ref in (made["id"], made["slug"]):
            assert await api.get(f"/{path}/{ref}") == made
    assert made in (await api.get("/groves", limit="200"))["projects"]


async def test_the_clients_own_id_makes_it_once(api: HubClient) -> None:
    mine = str(uuid.uuid4())
    first = (await post(api, name=some("own"), id=mine)).expect(201).json
    second = (await post(api, name="whatever", id=mine.upper())).expect(200).json
    assert first == second
    assert first["id"] == mine


async def test_a_key_makes_it_once(api: HubClient) -> None:
    body = {"name": some("keyed")}
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = (await api.ask("POST", "/projects", body, headers=key)).expect(201).json
    second = (await api.ask("POST", "/projects", body, headers=key)).expect(200, 201).json
    assert first["id"] == second["id"]
    other = await api.ask("POST", "/projects", {"name": some("other")}, headers=key)
    assert other.expect(409).code == "idempotency_conflict"


async def test_the_same_name_again_gets_the_next_slug(api: HubClient) -> None:
    name = some("twice")
    first = (await post(api, name=name)).expect(201).json
    second = (await post(api, name=name)).expect(201).json
    assert second["slug"] == f"{first['slug']}-1"


async def test_a_slug_that_was_asked_for_is_never_changed(api: HubClient) -> None:
    slug = f"slug-{uuid.uuid4().hex[:8]}"
    assert (await post(api, name="a", slug=slug)).expect(201).json["slug"] == slug
    assert (await post(api, name="b", slug=slug)).expect(409).code == "already_exists"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "!!!"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": "a", "slug": "Not A Slug"}, "slug"),
        ({"name": "a", "id": "mine"}, "id"),
        ({"name": "a", "labels": {"x": None}}, "labels"),
    ],
)
async def test_bad_fields_are_named(api: HubClient, body: dict[str, object], field: str) -> None:
    answer = (await api.ask("POST", "/projects", body)).expect(400)
    assert answer.code == "validation_error"
    assert list(answer.json["error"]["details"]["fields"]) == [field]


@pytest.mark.parametrize("path", ["projects", "groves"])
async def test_a_project_is_edited_and_keeps_its_slug(api: HubClient, path: str) -> None:
    made = (await post(api, name=some("before"), labels={"a": "b"})).json
    patch = {"name": "After", "defaultRuntimeBrokerId": str(uuid.uuid4())}
    edited = (await api.ask("PATCH", f"/{path}/{made['slug']}", patch)).expect(200).json
    assert edited == {**made, **patch, "updated": edited["updated"]}
    assert await api.get(f"/projects/{made['id']}") == edited
    assert (await api.ask("PATCH", f"/{path}/{made['id']}", {"name": "!!!"})).expect(400).code == "validation_error"
    assert (await api.ask("PATCH", f"/{path}/{uuid.uuid4()}", {})).expect(404).code == "not_found"


async def test_a_project_without_agents_can_be_deleted(api: HubClient) -> None:
    made = (await post(api, name=some("gone"))).json
    assert (await api.ask("DELETE", f"/projects/{made['slug']}")).expect(204).text == ""
    assert (await api.ask("GET", f"/projects/{made['id']}")).expect(404).code == "not_found"
    (await api.ask("DELETE", f"/projects/{made['id']}")).expect(404)


async def test_a_project_with_agents_is_kept(ours: Scene) -> None:
    agent = await ours.agent()
    assert (await ours.api.ask("DELETE", f"/projects/{ours.project}")).expect(409).code == "invalid_state"
    (await ours.api.delete(agent["id"])).expect(204)
    (await ours.api.ask("DELETE", f"/projects/{ours.project}")).expect(204)


async def test_a_list_is_walked_to_its_end_and_counted(api: HubClient) -> None:
    for n in range(5):
        await post(api, name=some(f"walk{n}"))
    seen: list[str] = []
    page: dict[str, str] = {}
    while True:
        answer = await api.get("/projects", limit="2", **page)
        seen += [one["id"] for one in answer["projects"]]
        if answer["nextCursor"] is None:
            break
        page = {"cursor": answer["nextCursor"]}
    assert len(seen) == len(set(seen)) == answer["totalCount"]
