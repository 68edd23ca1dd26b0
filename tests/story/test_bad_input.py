"""Bad requests over HTTP: each a clear error that says what to do, and the hub goes on."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.raw import exchange, request

if TYPE_CHECKING:
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio

UNKNOWN = "0193b8e4-0000-7000-8000-000000000000"
ROUTES_WITH_IDS = [
    ("GET", "/agents/{}"), ("PATCH", "/agents/{}"), ("DELETE", "/agents/{}"), ("POST", "/agents/{}/start"),
    ("POST", "/agents/{}/stop"), ("POST", "/agents/{}/restart"), ("POST", "/agents/{}/suspend"),
    ("POST", "/agents/{}/message"), ("POST", "/agents/{}/env"), ("GET", "/agents/{}/has-prompt"),
    ("GET", "/agents/{}/logs"), ("GET", "/projects/{}"), ("GET", "/runtime-brokers/{}"),
    ("POST", "/runtime-brokers/{}/pause"), ("GET", "/dispatches/{}"), ("GET", "/dispatches/{}/explain"),
    ("POST", "/dispatches/{}/cancel"), ("POST", "/dispatches/{}/requeue"),
]  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {"message": {"message": "x"}, "env": {"env": {"A": "b"}}}


def bearer(edge: Scene) -> dict[str, str]:
    return {"Authorization": f"Bearer {edge.api.token}", "Content-Type": "application/json"}


@pytest.mark.parametrize("bad_id", [UNKNOWN, "not-a-uuid", "%00", "a" * 300, "..%2f..%2fetc"])
@pytest.mark.parametrize(("method", "route"), ROUTES_WITH_IDS)
async def test_an_unknown_or_malformed_id_is_404(edge: Scene, method: str, route: str, bad_id: str) -> None:
    body = BODIES.get(route.rsplit("/", 1)[1], {}) if method in ("POST", "PATCH") else None
    answer = await edge.api.ask(method, route.format(bad_id), body)
    assert answer.expect(404).code == "not_found"
    assert answer.json["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/nothing", "/agents/x/y/z", "/%2e%2e/etc/passwd"])
async def test_an_unknown_path_is_404_for_everybody(edge: Scene, method: str, path: str) -> None:
    for credentials in (f"Bearer {edge.api.token}", "Bearer wrong", ""):
        answer = await edge.api.ask(method, path, headers={"Authorization": credentials})
        assert answer.expect(404).code == "not_found"


async def test_an_unknown_method_is_405(edge: Scene) -> None:
    answer = await edge.api.ask("PUT", "/agents")
    assert answer.expect(405).json["error"]["code"]
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize(
    "body", [b"{", b"[1,2]", b'"text"', b"12", b"null", b'{"name": }', b"\xff\xfe", b"{" * 5000, b"\x00"]
)
@pytest.mark.parametrize("path", ["/agents", "/projects", "/brokers"])
async def test_a_body_that_is_no_json_object_is_400(edge: Scene, path: str, body: bytes) -> None:
    answer = await edge.api.ask("POST", path, content=body)
    assert answer.expect(400).code in ("invalid_request", "validation_error")


async def test_every_bad_field_is_named_at_once(edge: Scene) -> None:
    answer = await edge.api.ask("POST", "/agents", {"name": 7, "projectId": [], "labels": "x"})
    assert answer.expect(400).code == "validation_error"
    assert {"name", "projectId", "labels"} <= answer.json["error"]["details"]["fields"].keys()


async def test_missing_fields_are_named(edge: Scene) -> None:
    answer = await edge.api.ask("POST", "/agents", {})
    assert answer.expect(400).code == "validation_error"
    assert {"name", "projectId"} <= answer.json["error"]["details"]["fields"].keys()


@pytest.mark.parametrize(
    ("path", "params"),
    [("/dispatches", {"state": "flying"}), ("/dispatches", {"limit": "many"}), ("/dispatches", {"limit": "-1"}),
     ("/dispatches", {"cursor": "nonsense"}), ("/agents", {"cursor": "AAAA"}), ("/agents", {"limit": "0"})],
)  # fmt: skip
async def test_a_bad_query_is_400(edge: Scene, path: str, params: dict[str, str]) -> None:
    answer = await edge.api.ask("GET", path, params=params)
    assert answer.expect(400).code == "validation_error"


async def test_an_unknown_project_of_a_new_agent_is_refused(edge: Scene) -> None:
    answer = await edge.api.post_agent(UNKNOWN, edge.broker_id)
    assert answer.expect(404, 422).code
    answer = await edge.api.post_agent(edge.project, UNKNOWN)
    assert answer.status in (404, 422)


@pytest.mark.parametrize("token", [None, "", "wrong", "x" * 5000, "Ünïcode"])
async def test_without_a_good_token_the_answer_is_401(edge: Scene, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    got = await exchange(edge.hub.url, request("GET", "/api/v1/agents", headers))
    assert (got.status, got.code) == (401, "unauthorized")


async def test_401_comes_before_the_body_is_looked_at(edge: Scene) -> None:
    for body in (b"{not json", b"x" * 2_000_000):
        got = await exchange(edge.hub.url, request("POST", "/api/v1/agents", {}, body))
        assert got.status == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_public_routes_need_no_token(edge: Scene, path: str) -> None:
    got = await exchange(edge.hub.url, request("GET", path, {}))
    assert got.status == 200


async def test_a_head_over_64_kib_is_431(edge: Scene) -> None:
    huge = {"Authorization": "Bearer x", "X-Padding": "x" * 70_000}
    got = await exchange(edge.hub.url, request("GET", "/api/v1/agents", huge))
    assert (got.status, got.code) == (431, "headers_too_large")


async def test_a_head_that_never_ends_is_cut(edge: Scene) -> None:
    parts = [b"GET / HTTP/1.1\r\n", *(f"X-{n}: {'y' * 1000}\r\n".encode() for n in range(200))]
    got = await exchange(edge.hub.url, *parts)
    assert got.status in (431, None)


async def test_a_long_url_is_refused(edge: Scene) -> None:
    got = await exchange(edge.hub.url, request("GET", f"/api/v1/agents?x={'y' * 100_000}", bearer(edge)))
    assert got.status in (414, 431)


async def test_a_body_over_1_mib_is_413(edge: Scene) -> None:
    body = json.dumps({"name": "x", "config": {"padding": "x" * 1_100_000}}).encode()
    got = await exchange(edge.hub.url, request("POST", "/api/v1/agents", bearer(edge), body))
    assert (got.status, got.code) == (413, "payload_too_large")


async def test_a_chunked_body_over_1_mib_is_413(edge: Scene) -> None:
    head = {**bearer(edge), "Transfer-Encoding": "chunked", "Host": "hub"}
    first = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    parts = [f"POST /api/v1/agents HTTP/1.1\r\n{first}\r\n".encode(), *([chunk] * 20), b"0\r\n\r\n"]
    got = await exchange(edge.hub.url, *parts)
    assert (got.status, got.code) == (413, "payload_too_large")


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"hello\r\n\r\n"])
async def test_garbage_in_place_of_http_harms_nobody(edge: Scene, garbage: bytes) -> None:
    got = await exchange(edge.hub.url, garbage + b"\r\n\r\n")
    assert got.status in (400, None)
    (await edge.api.ask("GET", "/agents")).expect(200)


async def test_every_answer_names_its_request(edge: Scene) -> None:
    mine = str(uuid.uuid4())
    answer = await edge.api.ask("GET", f"/agents/{UNKNOWN}", headers={"X-Request-Id": mine})
    assert (answer.headers["x-request-id"], answer.json["error"]["requestId"]) == (mine, mine)
    made = await edge.api.ask("GET", "/agents")
    assert made.headers["x-request-id"]


async def test_unicode_in_names_and_texts_survives(edge: Scene) -> None:
    agent = await edge.agent("Ærø 🚂", labels={"größe": "大"})
    found = await edge.api.agent(agent["id"])
    assert (found["name"], found["labels"]) == ("Ærø 🚂", {"größe": "大"})


async def test_lists_are_walked_to_the_end(edge: Scene) -> None:
    project = await edge.api.create_project()
    made = {(await edge.api.create_agent(project, edge.broker_id, provisionOnly=True))["id"] for _ in range(7)}
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await edge.api.get("/agents", projectId=project, limit="3", **cursor)
        seen += [agent["id"] for agent in page["agents"]]
        if not page.get("nextCursor"):
            break
        cursor = {"cursor": page["nextCursor"]}
    assert len(seen) == len(made)
    assert set(seen) == made


async def test_a_stale_version_is_a_conflict(edge: Scene) -> None:
    agent = await edge.agent()
    path = f"/agents/{agent['id']}"
    version = (await edge.api.agent(agent["id"]))["stateVersion"]
    (await edge.api.ask("PATCH", path, {"name": "new", "stateVersion": version})).expect(200)
    stale = await edge.api.ask("PATCH", path, {"name": "newer", "stateVersion": version})
    assert stale.expect(409).code == "version_conflict"
