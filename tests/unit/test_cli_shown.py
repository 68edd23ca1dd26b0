"""What commands show people of agents, brokers, dispatches and logs, beyond the rows that the hub keeps."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.cli.agent_logs import Sieve
from tests.harness.command_line import Ran, pointsman
from tests.harness.scripted_hub import TOKEN, Reply, ScriptedHub, error

AGENT, BROKER, PROJECT, DISPATCH = (str(uuid.uuid4()) for _ in range(4))
ROW = {
    "id": AGENT,
    "slug": "worker",
    "name": "Worker",
    "projectId": PROJECT,
    "runtimeBrokerId": BROKER,
    "phase": "stopped",
    "labels": {"floor": "top", "zone": "eu"},
}
ATTIC = {"id": BROKER, "name": "attic", "slug": "attic", "labels": {"floor": "top"}}


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with ScriptedHub().running() as hub:
        hub.on("GET", f"/agents/{AGENT}", Reply(document=ROW))
        hub.on("GET", "/projects/garden", Reply(document={"id": PROJECT, "slug": "garden"}))
        hub.on("GET", f"/projects/{PROJECT}", Reply(document={"id": PROJECT, "slug": "garden"}))
        hub.on("GET", f"/runtime-brokers/{BROKER}", Reply(document=ATTIC))
        hub.on("GET", "/runtime-brokers/attic", Reply(document=ATTIC))
        hub.on("GET", "/runtime-brokers", Reply(document={"brokers": [ATTIC], "nextCursor": None}))
        hub.on("GET", "/dispatches", Reply(document={"dispatches": [], "nextCursor": None}))
        yield hub


def run(hub: ScriptedHub, tmp_path: Path, *arguments: str) -> Ran:
    return pointsman(*arguments, cwd=tmp_path, extra={"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN})


def fields(ran: Ran) -> dict[str, str]:
    """A shown thing by its names."""
    lines = [line.split(maxsplit=1) for line in ran.out.splitlines()[1:]]
    return dict(lines)


# -- agents ------------------------------------------------------------------------------------------------------


def test_an_agent_is_shown_with_its_labels_and_the_names_of_project_and_broker(
    hub: ScriptedHub, tmp_path: Path
) -> None:
    shown = fields(run(hub, tmp_path, "agent", "show", AGENT))
    assert shown["labels"] == "floor=top, zone=eu"
    assert shown["project"] == f"garden ({PROJECT})"
    assert shown["broker"] == f"attic ({BROKER})"


def test_an_agent_whose_broker_is_gone_is_shown_all_the_same(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("GET", f"/runtime-brokers/{BROKER}", error(404, "not_found"))
    ran = run(hub, tmp_path, "agent", "show", AGENT)
    assert (ran.status, fields(ran)["broker"]) == (0, BROKER)


def test_labels_of_a_new_agent_are_sent(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/agents", Reply(status=201, document={"agent": ROW}, headers={"X-Dispatch-Id": DISPATCH}))
    labels = ("--label", "floor=top", "--label", "zone=eu")
    assert run(hub, tmp_path, "agent", "create", "x", "--project", "garden", *labels, "--", "true").status == 0
    assert hub.asked_for("POST", "/agents")[0].json["labels"] == {"floor": "top", "zone": "eu"}


NO_COMMAND = error(502, "runtime_error", "the broker answered 422 invalid_config: config.command is missing")
ENDED = {"id": DISPATCH, "op": "create", "state": "failed", "agentId": AGENT, "attempts": 1}


@pytest.mark.parametrize("follows", [False, True])
def test_a_creation_without_a_command_is_told_where_to_write_it(
    hub: ScriptedHub, tmp_path: Path, follows: bool
) -> None:
    accepted = Reply(status=202, document=ENDED, headers={"X-Dispatch-Id": DISPATCH})
    assert NO_COMMAND.document
    hub.on("POST", "/agents", accepted if follows else NO_COMMAND)
    hub.on("GET", f"/dispatches/{DISPATCH}", Reply(document={**ENDED, "error": NO_COMMAND.document["error"]}))
    ran = run(hub, tmp_path, "agent", "create", "x", "--project", "garden")
    assert ran.status == 1
    assert ran.err.endswith("give it after `--`: `pointsman agent create x … -- COMMAND ARGS…`\n")
    assert "after `--`" not in run(hub, tmp_path, "agent", "create", "x", "--project", "garden", "--", "true").err


@pytest.mark.parametrize(("more", "option"), [((), "--hold"), (("--now",), "--hold instead of --now")])
def test_what_the_hub_said_is_not_said_again(
    hub: ScriptedHub, tmp_path: Path, more: tuple[str, ...], option: str
) -> None:
    refused = error(409, "invalid_state", "agent worker is stopped: start it first, or send `Prefer: deliver=hold`")
    hub.on("POST", f"/agents/{AGENT}/message", refused)
    ran = run(hub, tmp_path, "agent", "message", AGENT, "hello", *more)
    assert ran.status == 4
    assert ran.err.count("start it first") == 1
    assert ran.err.splitlines()[1].strip() == f"{option} keeps it until the agent's next start"


def test_a_paused_broker_is_resumed_by_a_command_that_is_named_once(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", f"/agents/{AGENT}/start", error(503, "runtime_broker_paused", "The broker is paused: resume it"))
    ran = run(hub, tmp_path, "agent", "start", AGENT)
    assert (ran.status, ran.err.count("resume it")) == (5, 1)
    assert "--hold keeps it until the broker is resumed (`pointsman broker resume`)" in ran.err


# -- brokers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "past"), [("pause", "paused"), ("resume", "resumed")])
def test_a_broker_is_taken_out_of_service_and_back_by_its_name(
    hub: ScriptedHub, tmp_path: Path, step: str, past: str
) -> None:
    changed = {**ATTIC, "paused": step == "pause"}
    hub.on("POST", f"/runtime-brokers/{BROKER}/{step}", Reply(document=changed))
    ran = run(hub, tmp_path, "broker", step, "attic")
    assert (ran.status, ran.out) == (0, f"broker attic {past}\n")
    assert hub.asked_for("POST", f"/runtime-brokers/{BROKER}/{step}")[0].headers["idempotency-key"]
    assert json.loads(run(hub, tmp_path, "broker", step, "attic", "--json").out) == changed


def test_a_broker_is_deleted_by_its_name(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("DELETE", f"/runtime-brokers/{BROKER}", Reply(status=204))
    assert run(hub, tmp_path, "broker", "delete", "attic").out == "broker attic deleted\n"
    assert json.loads(run(hub, tmp_path, "broker", "delete", "attic", "--json").out) == ATTIC


@pytest.mark.parametrize(("answer", "status"), [(error(409, "invalid_state"), 4), (error(403, "forbidden"), 77)])
def test_a_broker_that_is_not_deleted_says_why(hub: ScriptedHub, tmp_path: Path, answer: Reply, status: int) -> None:
    hub.on("DELETE", f"/runtime-brokers/{BROKER}", answer)
    ran = run(hub, tmp_path, "broker", "delete", "attic")
    assert (ran.status, ran.err) == (status, "error: told by the hub\n")


@pytest.mark.parametrize("step", ["pause", "resume", "delete"])
def test_a_broker_that_is_not_there_is_exit_3(hub: ScriptedHub, tmp_path: Path, step: str) -> None:
    ran = run(hub, tmp_path, "broker", step, "atic")
    assert ran.status == 3
    assert "did you mean attic?" in ran.err


def test_a_brokers_labels_are_shown_as_they_were_given(hub: ScriptedHub, tmp_path: Path) -> None:
    assert fields(run(hub, tmp_path, "broker", "show", "attic"))["labels"] == "floor=top"


# -- dispatches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "code", "shown"),
    [("done", "ended", False), ("failed", "ended", False), ("expired", "ended", True), ("pending", "paused", True)],
)
def test_what_has_ended_has_no_deadline_but_the_one_that_ended_it(
    hub: ScriptedHub, tmp_path: Path, state: str, code: str, shown: bool
) -> None:
    told: dict[str, Any] = {"id": DISPATCH, "state": state, "code": code, "sentence": "So it is.", "transitions": []}
    hub.on("GET", f"/dispatches/{DISPATCH}/explain", Reply(document={**told, "deadlineAt": "2099-01-01T00:00:00Z"}))
    assert ("2099" in run(hub, tmp_path, "dispatch", "explain", DISPATCH).out) == shown


# -- logs --------------------------------------------------------------------------------------------------------

LOGS = f"/agents/{AGENT}/logs"
REPORT = '::status {"activity": "working"}\n'


def test_a_log_is_shown_without_reports_unless_it_is_asked_for_raw(hub: ScriptedHub, tmp_path: Path) -> None:
    text = f"one\n{REPORT}::status of the garden\ntwo\n{REPORT}"
    hub.on("GET", LOGS, Reply(document={"logs": text}))
    assert run(hub, tmp_path, "agent", "logs", AGENT).out == "one\n::status of the garden\ntwo\n"
    assert run(hub, tmp_path, "agent", "logs", AGENT, "--raw").out == text
    assert json.loads(run(hub, tmp_path, "agent", "logs", AGENT, "--json").out) == {"logs": text}


def test_the_last_lines_are_counted_among_those_that_are_shown(hub: ScriptedHub, tmp_path: Path) -> None:
    lines = ["one\n", *[REPORT] * 30, "two\n", *[REPORT] * 30, "three\n", REPORT]
    hub.on("GET", LOGS, lambda asked: Reply(document={"logs": "".join(lines[-int(asked.query["tail"]) :])}))
    assert run(hub, tmp_path, "agent", "logs", AGENT, "--tail", "2").out == "two\nthree\n"
    assert run(hub, tmp_path, "agent", "logs", AGENT, "--tail", "2", "--raw").out == f"three\n{REPORT}"


@pytest.mark.parametrize(("raw", "shown"), [((), "one\ntwo\n"), (("--raw",), f"one\n{REPORT}two\n")])
def test_a_followed_log_is_sieved_too(hub: ScriptedHub, tmp_path: Path, raw: tuple[str, ...], shown: str) -> None:
    hub.on("GET", LOGS, *(Reply(document={"logs": text}) for text in ("one\n", f"one\n{REPORT}two\n")))
    hub.on("GET", f"/agents/{AGENT}", *[Reply(document={**ROW, "phase": "running"})] * 2, Reply(document=ROW))
    assert run(hub, tmp_path, "agent", "logs", AGENT, "-f", *raw).out == shown


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        (["a\n::sta", 'tus {"a": 1}\nb'], "a\nb"),
        (["a::sta", 'tus {"a": 1}\n'], 'a::status {"a": 1}\n'),
        (["::", "status\n"], "::status\n"),
        (['::status {"a"'], ""),
        (["a\n:"], "a\n:"),
        (["\u2028::status {\x0b::status {\n"], "\u2028::status {\x0b::status {\n"),
    ],
)
def test_a_report_is_told_by_its_whole_line_however_it_arrives(parts: list[str], shown: str) -> None:
    sieve = Sieve(raw=False)
    assert "".join(sieve.through(part) for part in parts) + sieve.rest("") == shown
