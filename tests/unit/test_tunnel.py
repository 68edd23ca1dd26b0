"""What a request to a broker looks like, and what each answer means (design/contract.md, Intents)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kernel.agent import Agent, AgentId, Phase
from kernel.clock import SYSTEM, Instant
from kernel.intent import Intent, IntentId, Op, State, lane_of
from kernel.project import Project
from kernel.tunnel import Answer, Subject, call_for, outcome_of

AGENT = Agent(
    id=AgentId("a" * 8), slug="worker", name="Worker", project_id="p1", phase=Phase.CREATED, config={"env": {"A": "1"}}
)
PROJECT = Project(id="p1", name="Demo", slug="demo")


def an_intent(op: Op, **fields: Any) -> Intent:
    plain: dict[str, Any] = {
        "id": IntentId("0190"),
        "state": State.IN_PROGRESS,
        "broker_id": "b1",
        "agent_id": AGENT.id,
        "agent_slug": AGENT.slug,
        "project_id": "p1",
        "attempts": 1,
        "deadline_at": Instant(1),
        "route": "local",
        "principal": "user:u",
        "request_id": "r",
        "node_id": "n",
        "created_at": Instant(0),
        "run_id": "run-1",
    }
    return Intent(op=op, lane=lane_of(op), **{**plain, **fields})


def answered(op: Op, status: int, body: Any = None, **fields: Any) -> Any:
    raw = body.encode() if isinstance(body, str) else b"" if body is None else json.dumps(body).encode()
    return outcome_of(an_intent(op, **fields), Answer(status=status, body=raw))


def body_of(op: Op, **fields: Any) -> dict[str, Any]:
    subject = Subject(agent=AGENT, project=PROJECT, token="t", hub="http://h")
    call = call_for(an_intent(op, **fields), subject, suspends=True, by_id=False)
    found: dict[str, Any] = json.loads(call.body)
    return found


def test_every_body_names_the_project_in_both_spellings() -> None:
    for op in (Op.CREATE, Op.START, Op.RESTART, Op.STOP, Op.SUSPEND, Op.FINALIZE_ENV, Op.MESSAGE):
        body = body_of(op)
        assert (body["projectId"], body["groveId"]) == ("p1", "p1"), op


def test_a_start_always_carries_who_the_agent_is() -> None:
    for op in (Op.CREATE, Op.START, Op.RESTART):
        env = body_of(op)["resolvedEnv"]
        assert env["SCION_AGENT_ID"] == AGENT.id
        assert {"SCION_AGENT_SLUG", "SCION_GROVE_ID", "SCION_AUTH_TOKEN", "SCION_HUB_ENDPOINT"} <= env.keys()


def test_a_creation_names_its_intent_as_the_request_id() -> None:
    body = body_of(Op.CREATE)
    assert body["requestId"] == "0190"
    assert body["inlineConfig"] == AGENT.config
    assert body["config"]["env"] == ["A=1"]


def test_a_pure_resume_sends_no_task() -> None:
    body = body_of(Op.START, args={"resume": True})
    assert body["resume"] is True
    assert "task" not in body


def test_suspend_goes_as_a_stop_to_a_broker_that_does_not_know_it() -> None:
    intent = an_intent(Op.SUSPEND)
    assert call_for(intent, None, suspends=False, by_id=False).path.endswith("/stop")
    assert call_for(intent, None, suspends=True, by_id=False).path.endswith("/suspend")


def test_a_deletion_passes_its_flags_in_the_query() -> None:
    call = call_for(an_intent(Op.DELETE, args={"deleteFiles": False}), None, suspends=True, by_id=False)
    assert call.method == "DELETE"
    assert "deleteFiles=false" in call.query


@pytest.mark.parametrize("status", [429, 503])
def test_later_is_no_end(status: int) -> None:
    outcome = answered(Op.START, status)
    assert outcome.kind == "later"
    assert outcome.failures == 1
    assert outcome.retry_in > 0


@pytest.mark.parametrize("status", [408, 412])
def test_what_the_broker_did_not_run_is_no_answer(status: int) -> None:
    assert answered(Op.STOP, status).kind == "dropped"


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 502])
def test_every_other_answer_ends_a_lifecycle_call(status: int) -> None:
    outcome = answered(Op.START, status, {"error": {"code": "nope", "message": "no such image"}})
    assert (outcome.kind, outcome.state) == ("end", State.FAILED)
    assert (outcome.error.code, outcome.error.status) == ("runtime_error", 502)
    assert "no such image" in outcome.error.message


def test_a_message_gets_three_answers_of_another_5xx() -> None:
    assert [answered(Op.MESSAGE, 500, failures=count).kind for count in range(3)] == ["later", "later", "end"]


def test_a_4xx_fails_a_message_at_once() -> None:
    assert answered(Op.MESSAGE, 404).state is State.FAILED


def test_deleting_what_the_broker_does_not_know_is_done() -> None:
    outcome = answered(Op.DELETE, 404)
    assert outcome.state is State.DONE
    assert outcome.change.removal == "soft"


def test_a_refused_creation_takes_its_agent_back_and_a_broken_one_leaves_it_in_error() -> None:
    assert answered(Op.CREATE, 422).change.removal == "row"
    assert answered(Op.CREATE, 500).change.phase is Phase.ERROR


@pytest.mark.parametrize(
    ("body", "phase"),
    [
        ({"phase": "starting"}, Phase.STARTING),
        ({"agent": {"phase": "error"}}, Phase.ERROR),
        ({"agent": {"status": "running"}}, Phase.RUNNING),
        ({"status": "accepted"}, Phase.RUNNING),
        ("started", Phase.RUNNING),
        (None, Phase.RUNNING),
    ],
)
def test_only_a_word_of_the_phase_list_counts(body: Any, phase: Phase) -> None:
    assert answered(Op.START, 202, body).change.phase is phase


@pytest.mark.parametrize(
    ("op", "phase"), [(Op.STOP, Phase.STOPPED), (Op.SUSPEND, Phase.SUSPENDED), (Op.CREATE, Phase.STARTING)]
)
def test_a_2xx_without_a_phase_means_the_operations_own(op: Op, phase: Phase) -> None:
    assert answered(op, 202, {"status": "accepted"}).change.phase is phase


def test_suspended_is_stored_even_where_the_broker_says_stopped() -> None:
    assert answered(Op.SUSPEND, 200, {"phase": "stopped"}).change.phase is Phase.SUSPENDED


def test_provision_only_leaves_it_created() -> None:
    assert answered(Op.CREATE, 201, {}, args={"provisionOnly": True}).change.phase is Phase.CREATED


def test_a_broker_that_asks_for_values_leaves_it_provisioning() -> None:
    outcome = answered(Op.CREATE, 202, {"needs": ["TOKEN"], "required": ["TOKEN"]})
    assert outcome.change.phase is Phase.PROVISIONING
    assert outcome.result["needs"] == ["TOKEN"]


def test_the_whole_reply_is_kept_whatever_it_is() -> None:
    assert answered(Op.STOP, 200, {"a": [1]}).result == {"a": [1]}
    assert answered(Op.STOP, 200, "plain text").result == "plain text"


def test_error_bodies_of_every_shape_are_told() -> None:
    for body in ({"error": {"message": "full disk"}}, {"error": "full disk"}, "full disk", {"message": "full disk"}):
        assert "full disk" in answered(Op.STOP, 500, body).error.message


def test_what_the_caller_stopped_ended_cancelled() -> None:
    assert answered(Op.START, 499).state is State.CANCELLED


def test_only_the_operations_that_make_a_run_store_one() -> None:
    assert answered(Op.START, 200).change.run_id == "run-1"
    assert answered(Op.STOP, 200).change.run_id is None


def test_the_run_that_the_broker_names_is_the_one_that_is_stored() -> None:
    """A start of an agent that runs leaves it under its old run, which it goes on to report under."""
    older = SYSTEM.uuid7()
    assert answered(Op.START, 200, {"agent": {"phase": "running", "runId": older}}).change.run_id == older


def test_a_run_that_is_no_uuid_is_not_one_of_ours() -> None:
    assert answered(Op.START, 200, {"agent": {"phase": "running", "runId": "run-0"}}).change.run_id == "run-1"


def test_an_outcome_is_a_value() -> None:
    outcome = answered(Op.START, 200)
    with pytest.raises(AttributeError):
        outcome.state = State.FAILED
    assert msgspec.structs.replace(outcome, state=State.FAILED).state is State.FAILED
