"""`pointsman node`: the hubs in a table, and one of them asked to drain by its id or the beginning of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.command_line import Ran, pointsman
from tests.harness.scripted_hub import TOKEN, Reply, ScriptedHub, error

A = "a193b8e4-0000-7000-8000-000000000001"
B = "b193b8e4-0000-7000-8000-000000000002"
C = "b193b8e4-0000-7000-8000-000000000003"


def node(node_id: str, **more: Any) -> dict[str, Any]:
    told = {"id": node_id, "version": "1.2", "startedAt": "2026-01-01T00:00:00Z", "beatAt": "2026-01-01T00:00:00Z"}
    return {**told, "silentSeconds": 0.25, "draining": False, "lostAt": None, "brokers": 3, **more}


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with ScriptedHub().running() as hub:
        rows = [node(A), node(B, draining=True, brokers=0), node(C)]
        hub.on("GET", "/nodes", Reply(document={"nodes": rows}))
        yield hub


def run(hub: ScriptedHub, tmp_path: Path, *arguments: str) -> Ran:
    return pointsman("node", *arguments, cwd=tmp_path, extra={"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN})


def test_the_hubs_are_listed_with_what_they_hold(hub: ScriptedHub, tmp_path: Path) -> None:
    ran = run(hub, tmp_path, "list")
    assert (ran.status, ran.err) == (0, "")
    head, first, second, _ = ran.out.splitlines()
    assert head.split()[:4] == ["ID", "STATUS", "BROKERS", "VERSION"]
    assert (first.split()[:4], first.endswith("250 ms ago")) == ([A, "serving", "3", "1.2"], True)
    assert second.split()[:3] == [B, "draining", "0"]


def test_json_is_the_hubs_own(hub: ScriptedHub, tmp_path: Path) -> None:
    assert [row["id"] for row in json.loads(run(hub, tmp_path, "list", "--json").out)["nodes"]] == [A, B, C]


def test_a_hub_is_asked_to_drain_by_the_beginning_of_its_id(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", f"/nodes/{A}/drain", Reply(status=202, document=node(A, draining=True)))
    ran = run(hub, tmp_path, "drain", "A193")
    assert (ran.status, ran.out.strip()) == (0, f"hub {A} drains")


@pytest.mark.parametrize(("name", "status", "told"), [("b193", 2, f"say which: {B}, {C}"), ("c", 3, "these live")])
def test_an_id_that_is_not_one_hubs_is_not_guessed(
    hub: ScriptedHub, tmp_path: Path, name: str, status: int, told: str
) -> None:
    ran = run(hub, tmp_path, "drain", name)
    assert ran.status == status
    assert told in ran.err


def test_the_only_hub_is_not_drained(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", f"/nodes/{A}/drain", error(409, "invalid_state"))
    assert run(hub, tmp_path, "drain", A).status == 4
