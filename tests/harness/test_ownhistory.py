"""What agents saw is given to the operation that asked for it, and what nobody asked for is told as such."""

from __future__ import annotations

from typing import Any

from tests.harness.checker import Run, violations
from tests.harness.history import Event
from tests.harness.ownhistory import whole


class Wire:
    """Requests and answers, one second after the other."""

    def __init__(self) -> None:
        self.t = 0.0
        self.events: list[Event] = []
        self.seen: list[Event] = []

    def asked(self, dispatch: str, op: str, run: str | None = None) -> None:
        told = {"socket": 1, "epoch": 1, "attempt": 1, "query": "", "objection": None, "json": {"runId": run}}
        self._next("request", requestId=f"r-{dispatch}", dispatch=dispatch, op=op, agent="one", **told)

    def answered(self, dispatch: str, status: int = 200) -> None:
        self._next("answer", requestId=f"r-{dispatch}", status=status)

    def saw(self, what: str, run: str) -> None:
        self.t += 1
        self.seen.append({"t": self.t, "wall": self.t, "pid": 2, "what": what, "run": run})

    def effects(self, *left: float) -> list[tuple[str, str]]:
        return [(e["op"], e["dispatch"]) for e in whole(self.events, self.seen, left) if e["what"] == "effect"]

    def unasked(self, *left: float) -> list[str]:
        return [event["why"] for event in whole(self.events, self.seen, left) if event["what"] == "unasked"]

    def _next(self, what: str, **more: Any) -> None:
        self.t += 1
        self.events.append({"t": self.t, "wall": self.t, "pid": 1, "what": what, "broker": "b", **more})


def started_and_stopped() -> Wire:
    wire = Wire()
    wire.asked("d1", "start", "run-1")
    wire.saw("run_began", "run-1")
    wire.answered("d1")
    wire.asked("d2", "stop")
    wire.saw("run_ended", "run-1")
    wire.answered("d2")
    return wire


def test_a_run_is_its_starts_effect_and_its_end_the_stops() -> None:
    wire = started_and_stopped()
    assert wire.effects() == [("start", "d1"), ("stop", "d2")]
    assert wire.unasked() == []


def test_a_restart_has_one_effect() -> None:
    wire = Wire()
    wire.asked("d1", "start", "run-1")
    wire.saw("run_began", "run-1")
    wire.answered("d1")
    wire.asked("d2", "restart", "run-2")
    wire.saw("run_ended", "run-1")
    wire.saw("run_began", "run-2")
    wire.answered("d2")
    assert wire.effects() == [("start", "d1"), ("restart", "d2")]


def test_an_end_after_the_answer_was_not_asked_for_unless_the_broker_left() -> None:
    wire = started_and_stopped()
    wire.asked("d3", "start", "run-2")
    wire.saw("run_began", "run-2")
    wire.answered("d3")
    wire.saw("run_ended", "run-2")
    [why] = wire.unasked()
    assert "run-2" in why
    assert wire.unasked(wire.t - 1) == []


def test_a_run_that_nobody_asked_for_breaks_a_promise() -> None:
    wire = started_and_stopped()
    wire.saw("run_began", "run-9")
    found = violations(Run(calls=[], broker=whole(wire.events, wire.seen), rows=[]))
    assert [fault for fault in found if fault.startswith("unasked: run run-9")]
