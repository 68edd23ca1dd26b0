"""Commands that look: tables for people, one JSON document for programs, names that are found, logs that go on."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.command_line import Ran, environment, on_terminal, pointsman
from tests.harness.scripted_hub import TOKEN, Asked, Cut, Reply, ScriptedHub, error

A, B, P, Q, D = (f"0193b8e4-0000-7000-8000-00000000000{n}" for n in range(5))


def agent(id: str, slug: str, project: str = P, **more: Any) -> dict[str, Any]:
    told = {"id": id, "slug": slug, "name": slug.title(), "projectId": project, "phase": "running"}
    return {**told, "runtimeBrokerId": "b-1", "stateVersion": 1, "updated": "2026-01-01T00:00:00.000001Z", **more}


ALL = [agent(A, "worker", activity="thinking"), agent(B, "helfer", detail={"note": "[red]x[/red]\x1b[2J"})]
PROJECTS = [{"id": P, "slug": "demo", "name": "Demo", "created": "2026-01-01T00:00:00Z"}]


def agents(asked: Asked) -> Reply:
    rows = [row for row in ALL if asked.query.get("slug") in (None, row["slug"])]
    rows = [row for row in rows if asked.query.get("projectId") in (None, row["projectId"])]
    return Reply(document={"agents": rows, "nextCursor": None, "totalCount": len(rows)})


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with ScriptedHub().running() as hub:
        hub.on("GET", "/agents", agents)
        hub.on("GET", f"/agents/{A}", Reply(document=ALL[0]))
        hub.on("GET", "/projects", Reply(document={"projects": PROJECTS, "nextCursor": None, "totalCount": 1}))
        hub.on("GET", "/projects/demo", Reply(document=PROJECTS[0]))
        hub.on("GET", f"/projects/{P}/agents/worker", Reply(document=ALL[0]))
        hub.on("GET", "/runtime-brokers/built-in", Reply(document={"id": "b-1", "name": "built-in"}))
        hub.on("GET", "/runtime-brokers", Reply(document={"brokers": [{"id": "b-1", "name": "built-in"}]}))
        yield hub


def hub_of(hub: ScriptedHub, **extra: str) -> dict[str, str]:
    return {"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN, **extra}


def run(hub: ScriptedHub, tmp_path: Path, *arguments: str, **extra: str) -> Ran:
    return pointsman(*arguments, cwd=tmp_path, extra=hub_of(hub, **extra))


# -- the start of a command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["agent", "--help"], ["agent", "create", "--help"]])
def test_help_imports_no_http_and_no_rich(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom kernel.cli import main\n"
        f"main({arguments!r})\n"
        "print(sorted({'httpx2', 'rich', 'anyio', 'falcon', 'sqlalchemy', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, timeout=60, check=False
    )
    assert done.stdout.startswith(b"Usage: ")
    assert done.stderr == b"[]\n"


# -- tables and documents -------------------------------------------------------------------------------------------


def test_a_pipe_gets_plain_aligned_text(hub: ScriptedHub, tmp_path: Path) -> None:
    ran = run(hub, tmp_path, "agent", "list")
    assert (ran.status, ran.err) == (0, "")
    head, first, second = ran.out.splitlines()
    assert head.split() == ["AGENT", "PROJECT", "PHASE", "ACTIVITY", "BROKER", "CHANGED", "ID"]
    assert first.split()[:5] == ["worker", "demo", "running", "thinking", "built-in"]
    assert [line.index("demo") for line in (first, second)] == [head.index("PROJECT")] * 2
    assert first.endswith(A)
    assert second.split()[3] == "-"


def test_a_terminal_gets_colours_and_whole_ids(hub: ScriptedHub, tmp_path: Path) -> None:
    ran = on_terminal("agent", "list", cwd=tmp_path, extra=hub_of(hub))
    assert ran.status == 0
    assert A in ran.out
    assert "\x1b[32mrunning\x1b[0m" in ran.out


def test_no_color_is_honoured_on_a_terminal(hub: ScriptedHub, tmp_path: Path) -> None:
    ran = on_terminal("agent", "list", cwd=tmp_path, extra=hub_of(hub, NO_COLOR="1"))
    assert "running" in ran.out
    assert "\x1b[32m" not in ran.out


@pytest.mark.parametrize("terminal", [False, True])
def test_what_an_agent_says_is_neither_markup_nor_control(hub: ScriptedHub, tmp_path: Path, terminal: bool) -> None:
    command = ("agent", "show", "helfer")
    shown = on_terminal(*command, cwd=tmp_path, extra=hub_of(hub)) if terminal else run(hub, tmp_path, *command)
    assert "[red]x[/red]\\x1b[2J" in shown.out
    assert "\x1b[2J" not in shown.out


def test_json_is_one_document_of_all_pages(hub: ScriptedHub, tmp_path: Path) -> None:
    def page(asked: Asked) -> Reply:
        n = int(asked.query.get("cursor", "0"))
        rows = [agent(str(uuid.uuid4()), f"a{n + i}") for i in range(int(asked.query["limit"]))]
        following = n + len(rows)
        return Reply(document={"agents": rows, "nextCursor": str(following) if following < 600 else None})

    hub.on("GET", "/agents", page)
    ran = run(hub, tmp_path, "agent", "list", "--json")
    listed = json.loads(ran.out)
    assert [row["slug"] for row in listed["agents"]] == [f"a{n}" for n in range(600)]
    assert listed["nextCursor"] is None
    some = json.loads(run(hub, tmp_path, "agent", "list", "--json", "--limit", "250").out)
    assert (len(some["agents"]), some["nextCursor"]) == (250, "250")


def test_an_empty_list_says_how_to_fill_it(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("GET", "/projects", Reply(document={"projects": [], "nextCursor": None}))
    ran = run(hub, tmp_path, "project", "list")
    assert (ran.status, ran.out.split()) == (0, ["SLUG", "NAME", "CREATED", "ID"])
    assert "pointsman project create" in ran.err


def test_a_locale_without_the_character_does_not_end_the_command(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("GET", "/projects/demo", Reply(document={**PROJECTS[0], "name": "Größe 日本"}))
    ran = run(hub, tmp_path, "project", "show", "demo", PYTHONIOENCODING="ascii")
    assert ran.status == 0
    assert "Gr\\xf6\\xdfe" in ran.out
    assert "Größe 日本" in run(hub, tmp_path, "project", "show", "demo").out


def test_a_reader_that_left_early_is_no_traceback(hub: ScriptedHub, tmp_path: Path) -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{Path(sys.executable).with_name('pointsman')!s} agent list --json | head -c 1"],
        cwd=tmp_path, env=environment(hub_of(hub)), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == (b"{", b"")


# -- projects -------------------------------------------------------------------------------------------------------


def test_a_project_is_made_with_a_key_and_deleted_by_its_slug(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/projects", Reply(status=201, document=PROJECTS[0]))
    hub.on("DELETE", f"/projects/{P}", Reply(status=204))
    assert run(hub, tmp_path, "project", "create", "Demo", "--label", "team=a").out == f"project demo ({P})\n"
    (asked,) = hub.asked_for("POST", "/projects")
    assert asked.json == {"name": "Demo", "labels": {"team": "a"}}
    assert asked.headers["idempotency-key"]
    assert run(hub, tmp_path, "project", "delete", "demo").out == "project demo deleted\n"


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [A, "worker", "demo/worker", "Worker"])
def test_an_agent_is_found_by_id_slug_path_and_name(hub: ScriptedHub, tmp_path: Path, name: str) -> None:
    ran = run(hub, tmp_path, "agent", "show", name, "--json")
    assert (ran.status, json.loads(ran.out)["id"]) == (0, A)


def test_a_slug_that_two_projects_use_has_to_be_told_apart(hub: ScriptedHub, tmp_path: Path) -> None:
    two = [agent(A, "worker"), agent(B, "worker", project=Q)]
    hub.on("GET", "/agents", Reply(document={"agents": two, "nextCursor": None}))
    ran = run(hub, tmp_path, "agent", "stop", "worker")
    assert ran.status == 2
    assert "demo/worker" in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("agent", "show", "wroker"), "did you mean worker?"),
        (("agent", "show", "demo/wroker"), "did you mean demo/worker"),
        (("project", "show", "dmeo"), "did you mean demo?"),
        (("agent", "list", "--broker", "bilt-in"), "did you mean built-in?"),
        (("agent", "show", "nowhere/worker"), "there is no project 'nowhere'"),
        (("dispatch", "show", "worker"), "pointsman dispatch list"),
        (("dispatch", "explain", D[:-1]), "is no id of a dispatch"),
        (("dispatch", "show", D), "there is no such thing"),
        (("agent", "show", "../../healthz"), "there is no project"),
    ],
)
def test_a_name_typed_wrong_is_exit_3_with_what_was_meant(
    hub: ScriptedHub, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    ran = run(hub, tmp_path, *arguments)
    assert (ran.status, ran.out) == (3, "")
    assert says in ran.err


# -- dispatches -----------------------------------------------------------------------------------------------------


def dispatch(**more: Any) -> dict[str, Any]:
    told = {"id": D, "op": "stop", "state": "failed", "agentId": A, "agentSlug": "worker", "attempts": 2, "failures": 1}
    return {**told, "created": "2026-01-01T00:00:00Z", "error": {"code": "runtime_error", "message": "no"}, **more}


def test_dispatches_are_listed_with_their_filters(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("GET", "/dispatches", Reply(document={"dispatches": [dispatch()], "nextCursor": "more"}))
    filters = ("--state", "failed", "--agent", "worker", "--broker", "built-in", "--op", "stop", "--limit", "1")
    ran = run(hub, tmp_path, "dispatch", "list", *filters)
    assert ran.out.splitlines()[1].split()[:5] == [D, "stop", "worker", "failed", "2"]
    assert "--all" in ran.err
    query = hub.asked_for("GET", "/dispatches")[0].query
    assert query == {"state": "failed", "op": "stop", "agentId": A, "brokerId": "b-1", "limit": "1"}


def test_a_failed_dispatch_is_shown_without_failing(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("GET", f"/dispatches/{D}", Reply(document=dispatch(sentAt="2026-01-01T00:00:01.5Z")))
    ran = run(hub, tmp_path, "dispatch", "show", D)
    assert ran.status == 0
    assert "runtime_error: no" in ran.out
    assert "sent " in ran.out
    assert json.loads(run(hub, tmp_path, "dispatch", "show", D, "--json").out)["id"] == D


def test_explain_tells_the_sentence_the_reasons_and_the_course(hub: ScriptedHub, tmp_path: Path) -> None:
    step = {"nodeId": "node-1", "epoch": 3, "attempt": None}
    told = {
        "id": D,
        "state": "pending",
        "code": "waiting_lane",
        "sentence": "It stands behind a stop.",
        "nextAttemptAt": "2099-01-01T00:00:00Z",
        "deadlineAt": "2099-01-01T00:15:00Z",
        "behind": {"id": B, "op": "stop"},
        "owner": {"nodeId": "node-1", "epoch": 3, "alive": True, "renewedAt": "2026-01-01T00:00:00Z"},
        "broker": {"status": "online", "since": "2026-01-01T00:00:00Z"},
        "transitions": [
            {"at": "2026-01-01T00:00:00.000000Z", "from": "accepted", "to": "pending", "reason": "recorded", **step},
            {"at": "2026-01-01T00:00:00.012345Z", "from": "pending", "to": "in_progress", "reason": "claimed", **step},
        ],
    }
    hub.on("GET", f"/dispatches/{D}/explain", Reply(document=told))
    ran = run(hub, tmp_path, "dispatch", "explain", D)
    assert ran.status == 0
    assert ran.out.startswith("It stands behind a stop.\n")
    assert f"stop {B}" in ran.out
    for part in ("waiting_lane", "node node-1, alive, epoch 3", "online since", "next attempt", "deadline"):
        assert part in ran.out
    assert "+12 ms" in ran.out.splitlines()[-1]
    assert json.loads(run(hub, tmp_path, "dispatch", "explain", D, "--json").out) == told


@pytest.mark.parametrize(
    ("outcome", "state", "status", "says"),
    [
        ("cancelled", "cancelled", 0, "stop worker cancelled"),
        ("already_ended", "cancelled", 0, "stop worker cancelled"),
        ("already_ended", "done", 4, "had ended before: done"),
        ("cancel_requested", "in_progress", 6, "the broker is asked to stop it"),
    ],
)
def test_a_cancellation_tells_what_it_was_worth(
    hub: ScriptedHub, tmp_path: Path, outcome: str, state: str, status: int, says: str
) -> None:
    answer = Reply(document={"outcome": outcome, "dispatch": dispatch(state=state)})
    hub.on("POST", f"/dispatches/{D}/cancel", answer)
    ran = run(hub, tmp_path, "dispatch", "cancel", D, "--no-wait")
    assert ran.status == status
    assert says in ran.out
    assert hub.asked_for("POST", f"/dispatches/{D}/cancel")[0].headers["idempotency-key"]


@pytest.mark.parametrize(("state", "status"), [("cancelled", 0), ("done", 4)])
def test_a_cancellation_waits_for_what_the_broker_does(
    hub: ScriptedHub, tmp_path: Path, state: str, status: int
) -> None:
    asked = Reply(document={"outcome": "cancel_requested", "dispatch": dispatch(state="in_progress")})
    hub.on("POST", f"/dispatches/{D}/cancel", asked)
    hub.on(
        "GET",
        f"/dispatches/{D}",
        Reply(document=dispatch(state="in_progress")),
        Reply(document=dispatch(state=state)),
    )
    ran = run(hub, tmp_path, "dispatch", "cancel", D, "--json")
    assert (ran.status, json.loads(ran.out)["dispatch"]["state"]) == (status, state)


@pytest.mark.parametrize(("state", "status"), [("done", 0), ("failed", 1)])
def test_a_requeued_dispatch_is_followed_as_the_new_one(
    hub: ScriptedHub, tmp_path: Path, state: str, status: int
) -> None:
    hub.on("POST", f"/dispatches/{D}/requeue", Reply(status=202, document=dispatch(id=B, state="pending")))
    hub.on("GET", f"/dispatches/{B}", Reply(document=dispatch(id=B, state=state)))
    ran = run(hub, tmp_path, "dispatch", "requeue", D, "--json")
    assert (ran.status, json.loads(ran.out)["id"]) == (status, B)


def test_a_requeue_without_an_answer_is_not_repeated(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", f"/dispatches/{D}/requeue", Cut())
    ran = run(hub, tmp_path, "dispatch", "requeue", D)
    assert ran.status == 6
    assert len(hub.asked_for("POST", f"/dispatches/{D}/requeue")) == 1


# -- logs -----------------------------------------------------------------------------------------------------------

LOGS = f"/agents/{A}/logs"


def test_a_log_goes_through_a_pipe_as_it_is(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("GET", LOGS, Reply(document={"logs": "[bold]eins[/bold]\n\x1b[31mzwei"}))
    ran = run(hub, tmp_path, "agent", "logs", "worker", "--tail", "2")
    assert (ran.status, ran.out) == (0, "[bold]eins[/bold]\n\x1b[31mzwei\n")
    assert hub.asked_for("GET", LOGS)[0].query == {"tail": "2"}


def test_a_log_cannot_harm_a_terminal(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("GET", LOGS, Reply(document={"logs": "\x1b[31mred\x1b[0m\n\x1b]52;c;eA==\x07[bold]\n"}))
    ran = on_terminal("agent", "logs", "worker", cwd=tmp_path, extra=hub_of(hub))
    assert "\x1b[31mred" in ran.out
    assert "\\x1b]52;c;eA==\\x07[bold]" in ran.out


def test_following_a_log_prints_each_line_once_and_ends_with_the_agent(hub: ScriptedHub, tmp_path: Path) -> None:
    looks = ["one\ntwo\n", "one\ntwo\nthree\n", "one\ntwo\nthree\n", "one\ntwo\nthree\nfour"]
    replies = [Reply(document={"logs": text}) for text in looks]
    hub.on("GET", LOGS, replies[0], replies[1], error(503, "unavailable"), *replies[2:])
    running = Reply(document=ALL[0])
    hub.on("GET", f"/agents/{A}", *[running] * 4, Reply(document={**ALL[0], "phase": "stopped"}))
    ran = run(hub, tmp_path, "agent", "logs", "worker", "--tail", "1", "--follow")
    assert (ran.status, ran.out) == (0, "two\nthree\nfour\n")


def test_following_asks_for_less_where_it_does_not_fit(hub: ScriptedHub, tmp_path: Path) -> None:
    def limited(asked: Asked) -> Reply:
        if int(asked.query["tail"]) > 500:
            return error(413, "response_too_large")
        return Reply(document={"logs": "one\n"})

    hub.on("GET", LOGS, limited)
    hub.on("GET", f"/agents/{A}", Reply(document={**ALL[0], "phase": "stopped"}))
    ran = run(hub, tmp_path, "agent", "logs", "worker", "-f")
    assert (ran.status, ran.out) == (0, "one\n")
