"""The checks of many hubs find what they are for, and let an orderly hand-over pass."""

from __future__ import annotations

from typing import Any

from tests.harness.checker import violations
from tests.harness.history import Event
from tests.harness.run import Row, Run

ONE, TWO = "node-1", "node-2"


def step(n: int, came: str, to: str, reason: str, node: str = ONE, epoch: int | None = None, attempt: int = 0) -> Row:
    known = {"epoch": epoch, "attempt": attempt if epoch else None}
    return {"intent_id": "m1", "n": n, "from_state": came, "to_state": to, "reason": reason, "node_id": node, **known}


def handed_over() -> list[Row]:
    """Claimed by one node, whose socket was lost, and done by another."""
    return [
        step(1, "accepted", "routed", "forward"),
        step(2, "routed", "pending", "recorded"),
        step(3, "pending", "in_progress", "claimed", ONE, 1, 1),
        step(4, "in_progress", "pending", "owner_lost", TWO),
        step(5, "pending", "in_progress", "claimed", TWO, 2, 2),
        step(6, "in_progress", "done", "answered", TWO, 2, 2),
    ]


def frame(epoch: int, attempt: int) -> Event:
    at = {"t": float(attempt), "wall": float(attempt), "pid": 7, "what": "request", "socket": epoch}
    return {**at, "op": "message", "agent": "a", "query": "", "dispatch": "m1", "requestId": f"r{attempt}"} | {
        "epoch": epoch,
        "attempt": attempt,
    }


def session(epoch: int) -> Event:
    return {"t": epoch - 0.5, "wall": epoch - 0.5, "pid": 7, "what": "connected", "socket": epoch, "epoch": epoch}


def faults(steps: list[Row], *, state: str = "done", calls: tuple[Event, ...] = (), **more: Any) -> list[str]:
    row = {"id": "m1", "op": "message", "agentId": "a", "state": state, "result": None, "error": None}
    times = {"endedAt": "2026-01-01T00:00:00+00:00", "deadlineAt": "2026-01-01T00:01:00+00:00"}
    broker = [session(1), frame(1, 1), session(2), frame(2, 2)]
    return violations(Run(calls=calls, broker=broker, rows=[row | times], steps=steps, **more))


def only(found: list[str], check: str) -> str:
    assert found
    assert {fault.partition(":")[0] for fault in found} == {check}, found
    return found[0]


def test_a_hand_over_is_in_order() -> None:
    assert faults(handed_over()) == []


def test_an_end_by_who_lost_it_is_found() -> None:
    steps = handed_over()
    steps[5] |= {"node_id": ONE, "epoch": 1, "attempt": 1}
    assert "by (1, 1), claimed by (2, 2)" in only(faults(steps), "stolen_end")


def test_a_claim_that_does_not_grow_is_found() -> None:
    steps = handed_over()
    steps[4] |= {"epoch": 1, "attempt": 1}
    steps[5] |= {"epoch": 1, "attempt": 1}
    found = faults(steps)
    assert any(fault.startswith("stolen_end") for fault in found)
    assert any(fault.startswith("two_owners: epoch 1") for fault in found)
    assert any(fault.startswith("unclaimed_frame") for fault in found)


def test_a_second_end_is_found() -> None:
    steps = [*handed_over(), step(7, "in_progress", "failed", "answered", ONE, 1, 1)]
    found = faults(steps, state="failed")
    assert any("after it had ended" in fault for fault in found)


def test_a_row_that_its_steps_do_not_explain_is_found() -> None:
    assert "is done, its last step led to in_progress" in only(faults(handed_over()[:5]), "row_and_steps_differ")


def test_a_key_that_named_two_intents_is_found() -> None:
    calls = tuple(
        {"t": 1.0, "what": "answered", "call": str(n), "status": 202, "key": "k", "dispatch": f"m{n}"} for n in (1, 2)
    )
    assert "key k named ['m1', 'm2']" in only(faults(handed_over(), calls=calls), "one_key_two_intents")


def test_a_failover_that_lost_commits_may_forget_what_was_acknowledged_meanwhile() -> None:
    told = {"op": "message", "agent": "a", "lane": "message"}
    calls = (
        {"t": 1.0, "what": "call", "call": "c", **told},
        {"t": 2.0, "what": "answered", "call": "c", "status": 202, "dispatch": "m9"},
    )
    only(faults(handed_over(), calls=calls), "lost")
    assert faults(handed_over(), calls=calls, forgotten=(1.5, 2.5)) == []


def test_a_claim_that_a_crash_undid_may_be_counted_again() -> None:
    steps = [step for step in handed_over() if step["n"] not in (3, 4)]
    steps = [step | {"n": n} for n, step in enumerate(steps, 1)]
    steps[2] |= {"attempt": 1}
    steps[3] |= {"attempt": 1}
    row = {"id": "m1", "op": "message", "agentId": "a", "state": "done", "result": None, "error": None}
    times = {"endedAt": "2026-01-01T00:00:00+00:00", "deadlineAt": "2026-01-01T00:01:00+00:00"}
    broker = [session(1), frame(1, 1), session(2), frame(2, 1)]
    run = Run(calls=(), broker=broker, rows=[row | times], steps=steps, crashed=True)
    assert violations(run) == []
