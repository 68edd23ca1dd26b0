"""The checker names each broken promise, and finds nothing where all were kept."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.harness.checker import Run, check, repeated_after_answer, violations
from tests.harness.history import Event

START = 1_700_000_000.0


def at(seconds: float) -> str:
    return datetime.fromtimestamp(START + seconds, UTC).isoformat()


class Story:
    """Builds the three sources of a run step by step; every step is one second after the former."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Event] = []
        self.broker: list[Event] = []
        self.rows: list[dict[str, Any]] = []

    def _event(self, what: str, pid: int, **more: Any) -> Event:
        self.now += 1
        return {"t": self.now, "wall": START + self.now, "pid": pid, "what": what, **more}

    def call(self, dispatch: str, status: int | None = 202, op: str = "message", agent: str = "a") -> None:
        lane = "message" if op == "message" else "control"
        call = f"call-{self.now}"
        self.calls.append(self._event("call", 1, call=call, op=op, agent=agent, lane=lane))
        if status is not None:
            self.calls.append(self._event("answered", 1, call=call, status=status, dispatch=dispatch))

    def look(self, status: str) -> None:
        self.calls.append(self._event("broker_status", 1, broker="b", status=status))

    def connected(self, epoch: int = 1, socket: int = 1) -> None:
        self.broker.append(self._event("connected", 2, socket=socket, epoch=epoch))

    def closed(self, socket: int = 1) -> None:
        self.broker.append(self._event("closed", 2, socket=socket))

    def request(self, dispatch: str, op: str = "message", agent: str = "a", **more: Any) -> None:
        told = {"socket": 1, "epoch": 1, "attempt": 1, "query": "", "objection": None, **more}
        self.broker.append(self._event("request", 2, requestId=f"r-{dispatch}-{self.now}", op=op, agent=agent,
                                       dispatch=dispatch, **told))  # fmt: skip

    def effect(self, dispatch: str, op: str = "message", agent: str = "a") -> None:
        self.broker.append(self._event("effect", 2, dispatch=dispatch, op=op, agent=agent))

    def answer(self, dispatch: str, status: int = 200) -> None:
        asked = [e for e in self.broker if e["what"] == "request" and e["dispatch"] == dispatch][-1]
        self.broker.append(self._event("answer", 2, socket=1, requestId=asked["requestId"], status=status))

    def row(self, dispatch: str, state: str = "done", op: str = "message", **more: Any) -> None:
        told = {"agentId": "a", "endedAt": at(self.now), "deadlineAt": at(600), "result": {"echo": dispatch}, **more}
        self.rows.append({"id": dispatch, "op": op, "state": state, **told})

    def served(self, dispatch: str, op: str = "message") -> None:
        """One intent as it should go."""
        self.call(dispatch, op=op)
        self.request(dispatch, op=op)
        self.effect(dispatch, op=op)
        self.answer(dispatch)
        self.row(dispatch, op=op)

    def faults(self, **more: Any) -> list[str]:
        return violations(Run(calls=self.calls, broker=self.broker, rows=self.rows, **more))


@pytest.fixture
def story() -> Story:
    told = Story()
    told.connected()
    return told


def only(faults: list[str], check_name: str) -> str:
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"{check_name}: ")
    return faults[0]


def test_a_run_that_kept_every_promise_has_no_violations(story: Story) -> None:
    story.served("m1")
    story.served("m2")
    check(Run(calls=story.calls, broker=story.broker, rows=story.rows))


def test_an_acknowledged_intent_without_a_row_is_lost(story: Story) -> None:
    story.served("m1")
    story.call("m2")
    assert "m2" in only(story.faults(), "lost")


def test_a_refused_call_needs_no_row(story: Story) -> None:
    story.call("m1", status=503)
    assert story.faults() == []


def test_an_acknowledgement_must_name_its_intent(story: Story) -> None:
    story.call("m1")
    story.calls[-1]["dispatch"] = None
    assert "without X-Dispatch-Id" in only(story.faults(), "lost")


def test_a_row_that_never_ended_is_found(story: Story) -> None:
    story.call("m1")
    story.row("m1", state="pending", endedAt=None)
    assert "still pending" in only(story.faults(), "unended")


def test_a_row_that_ended_long_after_its_deadline_is_found(story: Story) -> None:
    story.row("m1", state="expired", endedAt=at(620), error={"code": "broker_timeout"})
    assert "20.0 s after" in only(story.faults(), "unended")


def test_an_end_without_a_reason_is_found(story: Story) -> None:
    story.row("m1", state="failed", error=None)
    assert "without a reason" in only(story.faults(), "unended")


def test_two_effects_of_one_intent_are_found_for_a_broker_that_dedupes(story: Story) -> None:
    story.served("m1")
    story.effect("m1")
    assert "2 times" in only(story.faults(), "doubled")
    assert story.faults(dedupes=False) == []


def test_one_id_for_two_wishes_is_found(story: Story) -> None:
    story.served("m1")
    story.request("m1", agent="b", attempt=2)
    assert "sent as" in only(story.faults(), "doubled")


def test_an_overtaken_message_is_found(story: Story) -> None:
    story.call("m1")
    story.call("m2")
    for dispatch in ("m2", "m1"):
        story.request(dispatch)
        story.effect(dispatch)
        story.answer(dispatch)
        story.row(dispatch)
    assert "m2 took effect before message m1" in only(story.faults(), "reordered")


def test_concurrent_calls_have_no_order(story: Story) -> None:
    story.call("m1")
    story.call("m2")
    story.calls[1]["t"] = story.calls[3]["t"]
    for dispatch in ("m2", "m1"):
        story.request(dispatch)
        story.effect(dispatch)
        story.answer(dispatch)
        story.row(dispatch)
    assert story.faults() == []


def test_creates_of_two_agents_are_not_one_lane(story: Story) -> None:
    for dispatch, agent in (("c2", "b"), ("c1", "a")):
        story.request(dispatch, op="create", agent=agent)
        story.effect(dispatch, op="create", agent=agent)
        story.answer(dispatch, 201)
    for dispatch, agent in (("c1", "a"), ("c2", "b")):
        story.call(dispatch, 201, op="create", agent="")
        story.row(dispatch, op="create", agentId=agent)
    assert story.faults() == []


def test_two_frames_of_one_lane_at_once_are_found(story: Story) -> None:
    story.request("m1")
    story.request("m2")
    for dispatch in ("m1", "m2"):
        story.effect(dispatch)
        story.answer(dispatch)
        story.row(dispatch)
    assert "while m1 was at work" in only(story.faults(), "overlapping")


def test_a_frame_after_the_former_expired_is_in_order(story: Story) -> None:
    story.request("m1")
    story.row("m1", state="expired", error={"code": "outcome_unknown"})
    story.served("m2")
    assert story.faults() == []


def test_a_control_frame_beside_a_message_is_in_order(story: Story) -> None:
    story.request("m1")
    story.request("s1", op="stop")
    for dispatch, op in (("m1", "message"), ("s1", "stop")):
        story.effect(dispatch, op=op)
        story.answer(dispatch)
        story.row(dispatch, op=op)
    assert story.faults() == []


def test_a_request_with_a_former_epoch_is_found(story: Story) -> None:
    story.connected(epoch=2, socket=2)
    story.request("m1", socket=2, epoch=1)
    story.answer("m1")
    story.row("m1")
    assert "carries epoch 1" in only(story.faults(), "fenced")


def test_an_epoch_that_does_not_grow_is_found(story: Story) -> None:
    story.closed()
    story.connected(epoch=1, socket=2)
    assert "after 1" in only(story.faults(), "fenced")


def test_an_attempt_that_does_not_grow_is_found(story: Story) -> None:
    story.request("m1")
    story.request("m1")
    story.answer("m1")
    story.row("m1")
    assert "attempt 1 after 1" in only(story.faults(), "fenced")


def test_a_socket_that_is_read_late_is_in_order(story: Story) -> None:
    story.connected(epoch=2, socket=2)
    story.request("m1", socket=2, epoch=2, attempt=2)
    story.request("m1", socket=1, epoch=1, attempt=1)
    story.answer("m1")
    story.row("m1")
    assert story.faults() == []


def test_an_unsigned_request_is_found(story: Story) -> None:
    story.request("m1", objection="missing X-Scion-Signature")
    story.answer("m1", 401)
    story.row("m1", state="failed", error={"code": "runtime_error"})
    assert "badly signed" in only(story.faults(), "fenced")


def test_a_connected_broker_seen_offline_is_found(story: Story) -> None:
    for _ in range(5):
        story.look("online")
    story.look("offline")
    for _ in range(5):
        story.look("online")
    story.closed()
    story.look("offline")
    only(story.faults(), "late_offline")


def test_a_result_of_another_intent_is_found(story: Story) -> None:
    story.served("m1")
    story.rows[-1]["result"] = {"echo": "m0"}
    assert "holds the result of m0" in only(story.faults(), "misattributed")


def test_a_done_that_was_never_sent_is_found(story: Story) -> None:
    story.row("m1")
    assert "never sent" in only(story.faults(), "misattributed")


def test_a_success_told_for_a_failure_is_found(story: Story) -> None:
    story.call("s1", 200, op="start")
    story.row("s1", state="failed", op="start", error={"code": "runtime_error"})
    assert "told 200" in only(story.faults(), "untrue")


def test_not_happened_told_for_what_took_effect_is_found(story: Story) -> None:
    story.call("s1", 504, op="start")
    story.request("s1", op="start")
    story.effect("s1", op="start")
    story.row("s1", state="expired", op="start", error={"code": "broker_timeout"})
    assert "took effect" in only(story.faults(), "untrue")


def test_a_repeat_after_a_final_answer_is_found(story: Story) -> None:
    story.served("m1")
    story.request("m1", attempt=2)
    run = Run(calls=story.calls, broker=story.broker, rows=story.rows)
    assert repeated_after_answer(run) == ["m1 was sent again after its final answer"]


def test_a_repeat_after_a_passing_answer_is_in_order(story: Story) -> None:
    story.request("m1")
    story.answer("m1", 429)
    story.request("m1", attempt=2)
    story.answer("m1")
    assert repeated_after_answer(Run(calls=(), broker=story.broker, rows=())) == []


def test_one_id_with_two_answers_is_named(story: Story) -> None:
    story.served("m1")
    story.request("m1", epoch=2, attempt=2)
    story.answer("m1", 409)
    assert any(fault.startswith("told_twice: m1 was answered [200, 409]") for fault in story.faults())


def test_a_passing_answer_is_none(story: Story) -> None:
    story.call("m1")
    story.request("m1")
    story.answer("m1", 429)
    story.request("m1", attempt=2)
    story.effect("m1")
    story.answer("m1")
    story.row("m1")
    assert story.faults() == []
