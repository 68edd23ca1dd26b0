"""One message to many agents from the command line: whom it is for, what became of each, the exit status for it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.command_line import Ran, pointsman
from tests.harness.scripted_hub import TOKEN, Cut, Reply, ScriptedHub, error

PROJECT = str(uuid.uuid4())
GROUP = str(uuid.uuid4())
ONE, TWO = (str(uuid.uuid4()) for _ in range(2))
FIRST, SECOND = (str(uuid.uuid4()) for _ in range(2))
BROADCAST = f"/projects/{PROJECT}/broadcast"


def result(agent: str, slug: str, message: str, **more: Any) -> dict[str, Any]:
    return {"recipient": f"agent:{slug}", "agentId": agent, "messageId": message, "dispatchState": "pending", **more}


def refused(slug: str) -> dict[str, Any]:
    told = {"code": "invalid_state", "message": f"agent {slug} is stopped"}
    return {"recipient": f"agent:{slug}", "agentId": TWO, "messageId": None, "dispatchState": "none", "error": told}


def accepted(*results: dict[str, Any]) -> Reply:
    location = {"Location": f"/api/v1/dispatches?groupId={GROUP}"}
    return Reply(status=202, document={"groupId": GROUP, "results": list(results)}, headers=location)


def listed(**states: str) -> Reply:
    ids = {"first": FIRST, "second": SECOND}
    failure = {"code": "runtime_error", "message": "no such agent", "status": 502}
    rows = [
        {"id": ids[name], "op": "message", "state": state, "error": failure if state == "failed" else None}
        for name, state in states.items()
    ]
    return Reply(document={"dispatches": rows, "nextCursor": None})


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with ScriptedHub().running() as hub:
        project = {"id": PROJECT, "slug": "demo", "name": "Demo"}
        hub.on("GET", "/projects/demo", Reply(document=project))
        hub.on("GET", "/projects", Reply(document={"projects": [project], "nextCursor": None, "totalCount": 1}))
        for agent, slug in ((ONE, "worker"), (TWO, "helper")):
            row = {"id": agent, "slug": slug, "name": slug, "projectId": PROJECT, "phase": "running"}
            hub.on("GET", f"/projects/{PROJECT}/agents/{slug}", Reply(document=row))
        yield hub


def run(hub: ScriptedHub, tmp_path: Path, *arguments: str) -> Ran:
    extra = {"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN}
    return pointsman("agent", "message", *arguments, cwd=tmp_path, extra=extra)


def test_all_agents_of_a_project_are_told_in_one_request(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", BROADCAST, Cut(), accepted(result(ONE, "worker", FIRST), result(TWO, "helper", SECOND)))
    ran = run(hub, tmp_path, "--all", "--project", "demo", "good", "morning", "--hold")
    assert ran.status == 0
    assert ran.out.splitlines() == [
        f"{'AGENT':6}  {'MESSAGE':36}  {'STATE':7}  ERROR",
        f"worker  {FIRST}  pending  -",
        f"helper  {SECOND}  pending  -",
    ]
    assert f"dispatch list --group {GROUP}" in ran.err
    asked = hub.asked_for("POST", BROADCAST)
    assert {request.body for request in asked} == {b'{"message":"good morning"}'}
    assert len({request.headers["idempotency-key"] for request in asked}) == 1
    assert asked[0].headers["prefer"] == "deliver=hold"


def test_several_agents_are_told_in_one_request(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/messages/batch", accepted(result(ONE, "worker", FIRST), result(TWO, "helper", SECOND)))
    ran = run(hub, tmp_path, "worker,demo/helper,worker", "hello", "--project", "demo")
    assert ran.status == 0
    [asked] = hub.asked_for("POST", "/messages/batch")
    assert asked.json == {
        "messages": [{"agentId": ONE, "message": "hello"}, {"agentId": TWO, "message": "hello"}],
    }


def test_a_project_alone_says_where_an_agent_is_looked_up(hub: ScriptedHub, tmp_path: Path) -> None:
    sent = Reply(status=202, document={"messageId": FIRST, "dispatchState": "pending", "seq": 1})
    hub.on("POST", f"/agents/{ONE}/message", sent)
    assert run(hub, tmp_path, "--project", "demo", "worker", "hello").status == 0
    assert not hub.asked_for("POST", BROADCAST)


def test_what_was_refused_to_one_is_exit_4(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", BROADCAST, accepted(result(ONE, "worker", FIRST), refused("helper")))
    ran = run(hub, tmp_path, "--all", "--project", "demo", "hello")
    assert ran.status == 4
    assert "agent helper is stopped" in ran.out
    assert "1 accepted, 1 refused" in ran.err


def test_all_are_followed_to_their_end(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", BROADCAST, accepted(result(ONE, "worker", FIRST), result(TWO, "helper", SECOND)))
    hub.on(
        "GET",
        "/dispatches",
        listed(first="pending", second="in_progress"),
        error(503, "unavailable"),
        listed(first="done", second="done"),
    )
    ran = run(hub, tmp_path, "--all", "--project", "demo", "--wait", "20", "hello", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert [one["dispatchState"] for one in json.loads(ran.out)["results"]] == ["done", "done"]
    assert {asked.query["groupId"] for asked in hub.asked_for("GET", "/dispatches")} == {GROUP}


@pytest.mark.parametrize(("second", "status"), [("failed", 1), ("expired", 1), ("pending", 6)])
def test_the_worst_end_decides_the_exit_status(hub: ScriptedHub, tmp_path: Path, second: str, status: int) -> None:
    hub.on("POST", BROADCAST, accepted(result(ONE, "worker", FIRST), result(TWO, "helper", SECOND)))
    hub.on("GET", "/dispatches", listed(first="done", second=second))
    ran = run(hub, tmp_path, "--all", "--project", "demo", "--wait", "1", "hello")
    assert ran.status == status
    assert ("no such agent" in ran.out) == (second == "failed")


def test_a_project_without_agents_is_told_so(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", BROADCAST, accepted())
    ran = run(hub, tmp_path, "--all", "--project", "demo", "hello")
    assert ran.status == 0
    assert "no agent" in ran.err


@pytest.mark.parametrize(
    "arguments", [("--all", "hello"), ("worker",), (",", "hello"), ("--all", "--project", "demo")], ids=str
)
def test_nothing_is_sent_to_whom_it_may_not_concern(
    hub: ScriptedHub, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert run(hub, tmp_path, *arguments).status == 2
    assert not [asked for asked in hub.asked if asked.method == "POST"]
