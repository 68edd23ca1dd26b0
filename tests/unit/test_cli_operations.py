"""An operation from the command line: one key over all its requests, its true outcome, the exit status for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.command_line import EXECUTABLE, Ran, environment, on_terminal, pointsman
from tests.harness.scripted_hub import TOKEN, Asked, Cut, Hold, Reply, ScriptedHub, error

AGENT = str(uuid.uuid4())
PROJECT = str(uuid.uuid4())
DISPATCH = str(uuid.uuid4())
START = f"/agents/{AGENT}/start"
MESSAGE = f"/agents/{AGENT}/message"
ENV = f"/agents/{AGENT}/env"


def agent(**more: Any) -> dict[str, Any]:
    told = {
        "id": AGENT,
        "slug": "worker",
        "name": "Worker",
        "projectId": PROJECT,
        "phase": "running",
        "stateVersion": 3,
    }
    return {**told, **more}


def dispatch(state: str, **more: Any) -> dict[str, Any]:
    told = {"id": DISPATCH, "op": "start", "state": state, "agentId": AGENT, "agentSlug": "worker", "attempts": 1}
    return {**told, **more}


def accepted(**more: Any) -> Reply:
    location = {"Location": f"/api/v1/dispatches/{DISPATCH}", "X-Dispatch-Id": DISPATCH}
    return Reply(status=202, document=dispatch("pending", **more), headers=location)


DONE = Reply(document=agent(), headers={"X-Dispatch-Id": DISPATCH})


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with ScriptedHub().running() as hub:
        hub.on("GET", f"/agents/{AGENT}", Reply(document=agent()))
        hub.on("GET", "/agents", Reply(document={"agents": [agent()], "nextCursor": None, "totalCount": 1}))
        hub.on("GET", "/projects/demo", Reply(document={"id": PROJECT, "slug": "demo", "name": "Demo"}))
        hub.on("GET", f"/dispatches/{DISPATCH}", Reply(document=dispatch("in_progress")))
        hub.on("GET", "/dispatches", Reply(document={"dispatches": [], "nextCursor": None}))
        yield hub


def run(hub: ScriptedHub, tmp_path: Path, *arguments: str, stdin: bytes = b"", **extra: str) -> Ran:
    return pointsman(
        *arguments, cwd=tmp_path, extra={"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN, **extra}, stdin=stdin
    )


def keys(asked: list[Asked]) -> list[str]:
    return [request.headers["idempotency-key"] for request in asked]


# -- one key, whatever breaks ------------------------------------------------------------------------------------


def test_an_operation_carries_a_key_and_how_long_to_wait(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, DONE)
    ran = run(hub, tmp_path, "agent", "start", "worker", "--wait", "7", "--deadline", "2m")
    assert (ran.status, ran.out, ran.err) == (0, "worker started: running\n", "")
    (asked,) = hub.asked_for("POST", START)
    assert asked.headers["prefer"] == "wait=7"
    assert asked.headers["x-dispatch-deadline"] == "120"
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert str(uuid.UUID(asked.headers["idempotency-key"])) == asked.headers["idempotency-key"]


def test_two_invocations_have_two_keys(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, DONE)
    for _ in range(2):
        assert run(hub, tmp_path, "agent", "start", "worker").status == 0
    assert len(set(keys(hub.asked_for("POST", START)))) == 2


def test_a_connection_that_breaks_is_asked_again_with_the_same_key(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, Cut(), Cut(), DONE)
    ran = run(hub, tmp_path, "agent", "start", "worker", "--task", "ab")
    assert (ran.status, ran.out) == (0, "worker started: running\n")
    asked = hub.asked_for("POST", START)
    assert len(asked) == 3
    assert len(set(keys(asked))) == 1
    assert {request.body for request in asked} == {b'{"task":"ab"}'}
    assert len({request.headers["x-request-id"] for request in asked}) == 1


@pytest.mark.parametrize(
    "later",
    [
        error(503, "unavailable", Retry_After="1"),
        error(503, "draining", Retry_After="1"),
        error(503, "outcome_unrecorded", Retry_After="1"),
        error(429, "rate_limited", Retry_After="1"),
        Reply(status=503, raw=b"<html>starting</html>", headers={"Retry-After": "1"}),
        Reply(status=502, raw=b"<html>bad gateway</html>"),
    ],
    ids=["unavailable", "draining", "unrecorded", "limited", "proxy", "gateway"],
)
def test_a_hub_that_says_later_is_asked_again_with_the_same_key(hub: ScriptedHub, tmp_path: Path, later: Reply) -> None:
    hub.on("POST", START, later, DONE)
    assert run(hub, tmp_path, "agent", "start", "worker").status == 0
    asked = hub.asked_for("POST", START)
    assert len(asked) == 2
    assert len(set(keys(asked))) == 1


def test_a_hub_that_stays_unavailable_is_exit_5_when_the_wait_is_over(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, error(503, "unavailable", "the database is away", Retry_After="20"))
    ran = run(hub, tmp_path, "agent", "start", "worker", "--no-wait")
    assert ran.status == 5
    assert "error: the database is away\n" in ran.err


def test_an_outcome_that_never_came_is_unknown_and_not_failed(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, Cut())
    ran = run(hub, tmp_path, "agent", "start", "worker", "--wait", "1")
    assert ran.status == 6
    assert "may or may not have happened" in ran.err
    assert len(hub.asked_for("POST", START)) > 2


# -- 202, then the end -------------------------------------------------------------------------------------------


def test_an_accepted_operation_is_followed_to_its_end(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, accepted())
    hub.on(
        "GET",
        f"/dispatches/{DISPATCH}",
        Reply(document=dispatch("pending", attempts=0)),
        Cut(),
        error(503, "unavailable"),
        Reply(document=dispatch("in_progress")),
        Reply(document=dispatch("done")),
    )
    hub.on("GET", f"/agents/{AGENT}", Reply(document=agent(activity="thinking")))
    ran = run(hub, tmp_path, "agent", "start", "worker")
    assert (ran.status, ran.out) == (0, "worker started: running thinking\n")
    assert "start worker: pending, agent running thinking" in ran.err
    assert "start worker: in_progress, attempt 1, agent running thinking" in ran.err


def test_json_of_a_followed_operation_is_the_agent_and_nothing_else(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, accepted())
    hub.on(
        "GET",
        f"/dispatches/{DISPATCH}",
        Reply(document=dispatch("in_progress")),
        Reply(document=dispatch("done")),
    )
    ran = run(hub, tmp_path, "agent", "start", "worker", "--json")
    assert (ran.status, json.loads(ran.out), ran.err) == (0, agent(), "")


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        ("failed", "runtime_error", 1),
        ("expired", "broker_timeout", 1),
        ("cancelled", "cancelled", 1),
        ("expired", "outcome_unknown", 6),
    ],
)
def test_a_followed_end_decides_the_exit_status(
    hub: ScriptedHub, tmp_path: Path, state: str, code: str, status: int
) -> None:
    ended = dispatch(state, error={"code": code, "message": "no\nsuch file", "status": 502})
    hub.on("POST", START, accepted())
    hub.on("GET", f"/dispatches/{DISPATCH}", Reply(document=ended))
    ran = run(hub, tmp_path, "agent", "start", "worker", "--json")
    assert ran.status == status
    assert json.loads(ran.out) == ended
    assert ran.err.startswith(f"error: start worker: {state}: no\\nsuch file\n")
    assert DISPATCH in ran.err


def test_a_wait_that_is_over_says_why_and_where_it_goes_on(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, accepted())
    hub.on("GET", f"/dispatches/{DISPATCH}/explain", Reply(document={"sentence": "The broker is asleep."}))
    ran = run(hub, tmp_path, "agent", "start", "worker", "--wait", "1")
    assert ran.status == 6
    assert "not ended after 1 s: The broker is asleep." in ran.err
    assert f"pointsman dispatch cancel {DISPATCH}" in ran.err


def test_a_dispatch_in_doubt_is_followed_to_its_true_end(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, error(504, "outcome_unknown", X_Dispatch_Id=DISPATCH))
    hub.on("GET", f"/dispatches/{DISPATCH}", Reply(document=dispatch("done")))
    assert run(hub, tmp_path, "agent", "start", "worker").status == 0


@pytest.mark.parametrize("option", ["--no-wait", "--hold"])
def test_who_asks_for_no_more_is_content_with_acceptance(hub: ScriptedHub, tmp_path: Path, option: str) -> None:
    hub.on("POST", START, accepted())
    ran = run(hub, tmp_path, "agent", "start", "worker", option)
    assert (ran.status, ran.out) == (0, f"start worker: stored as {DISPATCH}\n")
    prefer = hub.asked_for("POST", START)[0].headers["prefer"]
    assert prefer == ("respond-async" if option == "--no-wait" else "deliver=hold, wait=5")


def test_progress_is_found_while_the_answer_is_still_to_come(hub: ScriptedHub, tmp_path: Path) -> None:
    def listed(asked: Asked) -> Reply:
        assert asked.query["agentId"] == AGENT
        sent = hub.asked_for("POST", START)[0].headers["x-request-id"]
        rows = [dispatch("done", id=str(uuid.uuid4()), requestId="other"), dispatch("in_progress", requestId=sent)]
        return Reply(document={"dispatches": rows, "nextCursor": None})

    def slow(asked: Asked) -> Reply:
        end = time.monotonic() + 30
        while not hub.asked_for("GET", f"/dispatches/{DISPATCH}") and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)
        return DONE

    hub.on("GET", "/dispatches", listed)
    hub.on("POST", START, slow)
    ran = run(hub, tmp_path, "agent", "start", "worker")
    assert (ran.status, ran.out) == (0, "worker started: running\n")
    assert "start worker: in_progress, attempt 1, agent running" in ran.err


def test_a_terminal_is_shown_how_it_goes_on(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, accepted())
    looks = [Reply(document=dispatch("in_progress"))] * 4
    hub.on("GET", f"/dispatches/{DISPATCH}", *looks, Reply(document=dispatch("done")))
    hub.on("GET", f"/agents/{AGENT}", Reply(document=agent(phase="starting")))
    ran = on_terminal(
        "agent", "start", "worker", cwd=tmp_path, extra={"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN}
    )
    assert ran.status == 0
    assert "start worker: in_progress, attempt 1, agent starting" in ran.out
    assert "\x1b[" in ran.out


def test_interrupting_leaves_the_operation_and_says_where_it_is(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, accepted())
    process = subprocess.Popen(
        [str(EXECUTABLE), "agent", "start", "worker"],
        cwd=tmp_path,
        env=environment({"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 30
    while len(hub.asked_for("GET", f"/dispatches/{DISPATCH}")) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert f"start worker goes on: `pointsman dispatch show {DISPATCH}`" in err.decode()


# -- exit statuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (error(400, "validation_error"), 4, "told by the hub"),
        (error(409, "invalid_state"), 4, "told by the hub"),
        (error(422, "unprocessable"), 4, "told by the hub"),
        (error(401, "unauthorized"), 77, "POINTSMAN_TOKEN"),
        (error(403, "forbidden"), 77, "told by the hub"),
        (error(404, "not_found"), 3, "told by the hub"),
        (error(502, "runtime_error", "sh: no such file"), 1, "sh: no such file"),
        (error(504, "broker_timeout"), 1, "told by the hub"),
        (error(504, "outcome_unknown"), 6, "look at the agent"),
        (error(503, "runtime_broker_unavailable", Retry_After="1"), 5, "--hold"),
        (error(503, "runtime_broker_paused", Retry_After="1"), 5, "--hold"),
        (Reply(status=200, raw=b"<html>hello</html>", headers={"Content-Type": "text/html"}), 5, "no pointsman hub"),
        (Reply(status=404, raw=b"nginx"), 5, "no pointsman hub"),
    ],
)
def test_each_refusal_has_its_exit_status_and_a_line_that_helps(
    hub: ScriptedHub, tmp_path: Path, answer: Reply, status: int, says: str
) -> None:
    hub.on("POST", START, answer)
    ran = run(hub, tmp_path, "agent", "start", "worker")
    assert (ran.status, ran.out) == (status, "")
    assert ran.err.startswith("error: ")
    assert says in ran.err
    assert 1 <= len(ran.err.splitlines()) <= 2
    assert len(hub.asked_for("POST", START)) == 1


def test_the_fix_names_the_options_of_this_command_line(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, error(503, "runtime_broker_unavailable"))
    assert "--hold instead of --now keeps it until" in run(hub, tmp_path, "agent", "start", "worker", "--now").err
    hub.on("POST", MESSAGE, error(409, "invalid_state"))
    assert "--hold keeps it" in run(hub, tmp_path, "agent", "message", "worker", "hello").err
    hub.on("GET", f"/agents/{AGENT}/logs", error(503, "runtime_broker_unavailable"))
    assert "--hold" not in run(hub, tmp_path, "agent", "logs", "worker").err


def test_a_refusal_is_the_document_of_json(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, error(409, "invalid_state"))
    ran = run(hub, tmp_path, "agent", "start", "worker", "--json")
    assert ran.status == 4
    assert json.loads(ran.out)["error"]["code"] == "invalid_state"


def test_without_a_hub_the_fix_is_to_start_one(tmp_path: Path) -> None:
    ran = pointsman("agent", "list", cwd=tmp_path)
    assert (ran.status, ran.out) == (5, "")
    assert "make run" in ran.err
    assert "POINTSMAN_HUB" in ran.err


def test_a_ready_file_of_a_hub_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(30)
    (tmp_path / "var").mkdir()
    told = {"url": "http://127.0.0.1:1", "token": "t", "nodeId": "n", "pid": gone.pid}
    (tmp_path / "var/ready.json").write_text(json.dumps(told))
    ran = pointsman("agent", "list", cwd=tmp_path)
    assert ran.status == 5
    assert "no hub at http://127.0.0.1:1" in ran.err
    assert "left behind" in ran.err


def test_the_ready_file_is_enough(hub: ScriptedHub, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var/ready.json").write_text(json.dumps({"url": hub.url, "token": TOKEN}))
    hub.on("GET", "/projects", Reply(document={"projects": [], "nextCursor": None}))
    assert pointsman("project", "list", cwd=tmp_path).status == 0
    assert hub.asked[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_a_proxy_of_the_environment_is_not_asked_for_our_own_loopback(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("GET", "/projects", Reply(document={"projects": [], "nextCursor": None}))
    assert run(hub, tmp_path, "project", "list", http_proxy="http://127.0.0.1:1").status == 0


def test_an_address_that_is_none_is_exit_78(tmp_path: Path) -> None:
    ran = pointsman("agent", "list", cwd=tmp_path, extra={"POINTSMAN_HUB": "localhost:8080"})
    assert ran.status == 78
    assert "http://HOST:PORT" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("agent", "start"),
        ("agent", "create", "x"),
        ("agent", "fly", "worker"),
        ("agent", "start", "worker", "--hold", "--now"),
        ("agent", "start", "worker", "--wait=soon"),
        ("agent", "message", "worker"),
        ("agent", "logs", "worker", "--follow", "--json"),
        ("dispatch", "list", "--state", "lost"),
        ("agent", "create", "x", "--project", "demo", "--config", "no-such-file"),
    ],
)
def test_what_cannot_be_meant_is_exit_2(hub: ScriptedHub, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = run(hub, tmp_path, *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert "Error: " in ran.err
    assert not [request for request in hub.asked if request.method != "GET"]


def test_a_hub_that_never_answers_does_not_hold_a_command_for_ever(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", START, Hold())
    ran = run(hub, tmp_path, "agent", "start", "worker", "--wait", "1")
    assert ran.status == 6
    assert "did not answer within 11 s" in ran.err


# -- messages, deletion, creation -----------------------------------------------------------------------------------


def sent(state: str) -> Reply:
    document = {"messageId": DISPATCH, "dispatchState": state, "seq": 1}
    return Reply(status=202 if state == "pending" else 200, document=document, headers={"X-Dispatch-Id": DISPATCH})


def test_a_message_is_done_with_once_it_is_durable(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", MESSAGE, sent("pending"))
    ran = run(hub, tmp_path, "agent", "message", "worker", "grüß", "dich", "--interrupt")
    assert (ran.status, ran.out, ran.err) == (0, f"message {DISPATCH}: pending\n", "")
    (asked,) = hub.asked_for("POST", MESSAGE)
    assert asked.json == {"message": "grüß dich", "interrupt": True}
    assert asked.headers["idempotency-key"]


def test_a_message_that_is_waited_for_is_followed(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", MESSAGE, sent("pending"))
    hub.on("GET", f"/dispatches/{DISPATCH}", Reply(document=dispatch("done", op="message")))
    ran = run(hub, tmp_path, "agent", "message", "worker", "--wait", "hello")
    assert (ran.status, ran.out) == (0, f"message {DISPATCH}: done\n")
    (asked,) = hub.asked_for("POST", MESSAGE)
    assert (asked.json, asked.headers["prefer"]) == ({"message": "hello"}, "wait=50")


def test_a_message_is_read_from_standard_input(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", MESSAGE, sent("pending"))
    text = "first\n\tsecond \u2028 [bold]"
    ran = run(hub, tmp_path, "agent", "message", "worker", "-", stdin=f"{text}\n".encode())
    assert ran.status == 0
    assert hub.asked_for("POST", MESSAGE)[0].json == {"message": text}


def test_input_that_is_no_text_is_refused_before_anything_is_sent(hub: ScriptedHub, tmp_path: Path) -> None:
    ran = run(hub, tmp_path, "agent", "message", "worker", "-", stdin=b"\xff\xfe")
    assert ran.status == 2
    assert not hub.asked_for("POST", MESSAGE)


def test_a_deletion_is_repeated_with_its_key_and_shows_its_dispatch(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("DELETE", f"/agents/{AGENT}", Cut(), Reply(status=204, headers={"X-Dispatch-Id": DISPATCH}))
    hub.on("GET", f"/dispatches/{DISPATCH}", Reply(document=dispatch("done", op="delete")))
    ran = run(hub, tmp_path, "agent", "delete", "worker", "--keep-files", "--json")
    assert (ran.status, json.loads(ran.out)["op"]) == (0, "delete")
    asked = hub.asked_for("DELETE", f"/agents/{AGENT}")
    assert len(set(keys(asked))) == 1
    assert asked[0].query == {"deleteFiles": "false"}


def create(hub: ScriptedHub, tmp_path: Path, *more: str, stdin: bytes = b"") -> Ran:
    return run(hub, tmp_path, "agent", "create", "Worker", "--project", "demo", *more, stdin=stdin)


def made(**more: Any) -> Reply:
    return Reply(status=201, document={"agent": agent(), **more}, headers={"X-Dispatch-Id": DISPATCH})


def test_a_creation_says_what_to_run_and_where(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/agents", made(warnings=["slow broker"]))
    (tmp_path / "agent.json").write_text('{"workdir": "/srv", "env": {"A": "1"}}')
    ran = create(
        hub, tmp_path, "--broker", "b1", "--task", "t", "--config", "agent.json", "--env", "B=2", "--", "sh", "-c", "x"
    )
    assert (ran.status, ran.out, ran.err) == (0, f"worker running ({AGENT})\n", "warning: slow broker\n")
    assert hub.asked_for("POST", "/agents")[0].json == {
        "name": "Worker",
        "projectId": PROJECT,
        "runtimeBrokerId": "b1",
        "task": "t",
        "gatherEnv": True,
        "config": {"workdir": "/srv", "env": {"A": "1", "B": "2"}, "command": ["sh", "-c", "x"]},
    }


def no_broker(*available: dict[str, Any]) -> Reply:
    told = error(422, "no_runtime_broker", "no broker fits")
    told.document["error"]["details"]["availableBrokers"] = list(available)
    return told


def test_brokers_are_offered_by_name_only_where_some_are_connected(hub: ScriptedHub, tmp_path: Path) -> None:
    away = {"name": "cellar", "status": "offline"}
    hub.on("POST", "/agents", no_broker(away))
    ran = create(hub, tmp_path, "--", "true")
    assert (ran.status, ran.err) == (4, "error: no broker fits\n")
    hub.on("POST", "/agents", no_broker({"name": "attic", "status": "online"}, away, {"name": "b", "status": "online"}))
    ran = create(hub, tmp_path, "--", "true")
    assert ran.err == "error: no broker fits\n       connected: attic, b; name one with --broker\n"


def test_a_creation_that_took_long_shows_the_agent_all_the_same(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/agents", accepted())
    hub.on("GET", f"/dispatches/{DISPATCH}", Reply(document=dispatch("done", op="create", result={"agent": {}})))
    ran = create(hub, tmp_path, "--json", "--config", "-", stdin=b"{}")
    assert (ran.status, json.loads(ran.out)) == (0, {"agent": agent()})


GATHER = Reply(
    status=202,
    document={"agent": agent(phase="provisioning"), "envGather": {"required": ["KEY"], "needs": ["KEY"]}},
    headers={"X-Dispatch-Id": DISPATCH},
)


def test_missing_values_are_taken_from_the_options(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/agents", GATHER)
    hub.on("POST", ENV, made())
    assert create(hub, tmp_path, "--env", "KEY=v", "--env", "OTHER=w").status == 0
    (asked,) = hub.asked_for("POST", ENV)
    assert asked.json == {"env": {"KEY": "v"}}
    assert asked.headers["idempotency-key"] != hub.asked_for("POST", "/agents")[0].headers["idempotency-key"]


def test_missing_values_are_asked_for_on_a_terminal_and_not_echoed(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/agents", GATHER)
    hub.on("POST", ENV, made())
    ran = on_terminal(
        "agent", "create", "Worker", "--project", "demo", "--", "true",
        cwd=tmp_path,
        extra={"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN},
        typed={"KEY:": "s3cret"},
    )  # fmt: skip
    assert ran.status == 0
    assert "s3cret" not in ran.out
    assert hub.asked_for("POST", ENV)[0].json == {"env": {"KEY": "s3cret"}}


def test_without_a_terminal_it_says_what_is_missing_and_how_to_give_it(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/agents", GATHER)
    ran = create(hub, tmp_path)
    assert ran.status == 4
    assert "worker still needs KEY" in ran.err
    assert f"pointsman agent env {AGENT} KEY=" in ran.err
    hub.on("POST", ENV, made())
    assert run(hub, tmp_path, "agent", "env", AGENT, "KEY=v").status == 0
    assert hub.asked_for("POST", ENV)[0].json == {"env": {"KEY": "v"}}


def test_values_that_a_broker_asked_for_late_are_gathered_too(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.on("POST", "/agents", accepted())
    needs = {"agentId": AGENT, "required": ["KEY"], "needs": ["KEY"]}
    hub.on("GET", f"/dispatches/{DISPATCH}", Reply(document=dispatch("done", op="create", result=needs)))
    hub.on("POST", ENV, made())
    assert create(hub, tmp_path, "--env", "KEY=v").status == 0
    assert hub.asked_for("POST", ENV)[0].json == {"env": {"KEY": "v"}}
