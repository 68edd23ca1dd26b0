"""Reads the history of one run and names every promise that it breaks (P1 to P6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from tests.harness.fencing import CHECKS
from tests.harness.history import Event
from tests.harness.run import ENDED, Call, Run, by_dispatch, calls_of, instant

__all__ = ["Run", "calls_of", "check", "repeated_after_answer", "violations"]


def violations(run: Run) -> list[str]:
    """Every broken promise, in words; empty when all were kept."""
    promised = (lost, unended, doubled, unasked, told_twice, reordered, overlapping, fenced)
    checks = (*promised, misattributed, untrue, late_offline)
    return [f"{check.__name__}: {fault}" for check in (*checks, *CHECKS) for fault in check(run)]


def check(run: Run) -> None:
    """Raises: AssertionError with all violations."""
    found = violations(run)
    assert not found, "promises broken:\n" + "\n".join(found)


# -- P1 -----------------------------------------------------------------------------------------------------


def lost(run: Run) -> Iterator[str]:
    """An acknowledged intent has a row."""
    known = {row["id"] for row in run.rows}
    for call in calls_of(run):
        if call.acknowledged and call.dispatch is None:
            yield f"{call.op} of {call.agent} answered {call.status} without X-Dispatch-Id"
        elif call.acknowledged and call.dispatch not in known and not run.may_be_forgotten(call):
            yield f"{call.op} {call.dispatch} was acknowledged with {call.status} and has no row"


def unended(run: Run) -> Iterator[str]:
    """Every row ended, at the latest one sweep after its deadline, and says why if it is not `done`."""
    for row in run.rows:
        name = f"{row['op']} {row['id']}"
        if row["state"] not in ENDED:
            yield f"{name} is still {row['state']}"
            continue
        if not row.get("endedAt"):
            yield f"{name} is {row['state']} without endedAt"
        elif (over := instant(row["endedAt"]) - instant(row["deadlineAt"])) > run.sweep:
            yield f"{name} ended {over:.1f} s after its deadline"
        if row["state"] in ("failed", "expired") and not (row.get("error") or {}).get("code"):
            yield f"{name} is {row['state']} without a reason"


# -- P2 -----------------------------------------------------------------------------------------------------


def doubled(run: Run) -> Iterator[str]:
    """One dispatch id takes effect once, and is always the same wish, on a broker that dedupes."""
    effects = by_dispatch(run, "effect")
    for dispatch, found in effects.items():
        if run.dedupes and len(found) > 1:
            yield f"{found[0]['op']} {dispatch} took effect {len(found)} times"
    for dispatch, asked in by_dispatch(run, "request").items():
        wishes = {(event["op"], event["agent"]) for event in asked}
        if run.dedupes and len(wishes) > 1:
            yield f"{dispatch} was sent as {sorted(map(str, wishes))}"


def unasked(run: Run) -> Iterator[str]:
    """Nothing happens to an agent for which no operation asked; only a history of our own broker knows of it."""
    for event in run.broker:
        if event["what"] == "unasked":
            yield str(event["why"])


def told_twice(run: Run) -> Iterator[str]:
    """A broker that dedupes gives one id one final answer, however often it is asked and dies."""
    statuses: dict[str, set[int]] = defaultdict(set)
    names = {
        event["requestId"]: event["dispatch"] for events in by_dispatch(run, "request").values() for event in events
    }
    for event in run.broker:
        # one that is wrongly signed is no answer about the id
        if event["what"] == "answer" and event["requestId"] in names and event["status"] != 401 and _final(event):
            statuses[names[event["requestId"]]].add(event["status"])
    for dispatch, found in statuses.items():
        if run.dedupes and len(found) > 1:
            yield f"{dispatch} was answered {sorted(found)}"


def repeated_after_answer(run: Run) -> list[str]:
    """For runs in which nothing died: what was answered is not sent again."""
    faults = []
    for dispatch, asked in by_dispatch(run, "request").items():
        answered = {event["requestId"]: event for event in run.broker if event["what"] == "answer"}
        finals = [answered[e["requestId"]]["t"] for e in asked if _final(answered.get(e["requestId"]))]
        if finals and max(event["t"] for event in asked) > min(finals):
            faults.append(f"{dispatch} was sent again after its final answer")
    return faults


# -- P3 -----------------------------------------------------------------------------------------------------


def reordered(run: Run) -> Iterator[str]:
    """A call made after an earlier one of its agent and lane had been answered 2xx takes effect after it."""
    first = {dispatch: found[0]["t"] for dispatch, found in by_dispatch(run, "effect").items()}
    for calls in _by_lane(call for call in calls_of(run) if call.acknowledged and call.dispatch in first).values():
        ordered = sorted(calls, key=lambda call: call.called)
        for index, later in enumerate(ordered):
            for earlier in ordered[:index]:
                answered = earlier.answered is not None and earlier.answered < later.called
                if answered and first[str(earlier.dispatch)] > first[str(later.dispatch)]:
                    yield f"{later.op} {later.dispatch} took effect before {earlier.op} {earlier.dispatch}"


def overlapping(run: Run) -> Iterator[str]:
    """On one socket the next frame of a lane leaves after the former one's end was decided."""
    ended = {row["id"]: instant(row["endedAt"]) for row in run.rows if row.get("endedAt")}
    at_work: dict[tuple[Any, ...], Event] = {}
    for event in run.broker:
        if event["what"] == "request" and event.get("dispatch"):
            place = (event["pid"], event["socket"], event["query"], event["agent"], _lane(event["op"]))
            former = at_work.get(place)
            other = former is not None and former["dispatch"] != event["dispatch"]
            if former and other and ended.get(former["dispatch"], event["wall"] + 1) > event["wall"]:
                yield f"{event['op']} {event['dispatch']} was sent while {former['dispatch']} was at work"
            at_work[place] = event
        elif event["what"] == "answer":
            at_work = {p: e for p, e in at_work.items() if e["requestId"] != event["requestId"]}


# -- P4 -----------------------------------------------------------------------------------------------------


def fenced(run: Run) -> Iterator[str]:
    """Epochs grow with each session, requests carry their session's, attempts of one intent grow with them."""
    yield from _epochs(run)
    sent: dict[Any, list[Event]] = defaultdict(list)
    for event in run.broker:
        if event["what"] == "request" and event.get("dispatch"):
            # One attempt takes several requests where the broker cannot do it in one: a stock broker's restart.
            sent[event["dispatch"] if run.dedupes else (event["dispatch"], event["op"])].append(event)
            if event.get("objection"):
                yield f"{event['dispatch']} was badly signed: {event['objection']}"
    for events in sent.values():
        # A socket may be read late: what counts is the order of sessions, and the order within each.
        ordered = sorted(events, key=lambda event: event["epoch"] or 0)
        for former, later in zip([None, *ordered], ordered, strict=False):
            # A crash of the database may undo a claim: then the next one counts the same attempt, under a newer epoch.
            anew = run.crashed and former and later["epoch"] > former["epoch"]
            if later["attempt"] is None or (former and later["attempt"] <= former["attempt"] and not anew):
                after = former["attempt"] if former else None
                yield f"{later['dispatch']} was sent as attempt {later['attempt']} after {after}"


def _epochs(run: Run) -> Iterator[str]:
    """A session's epoch is higher than any that its broker had seen when it dialled."""
    highest = 0
    at_dial: dict[tuple[int, int], int] = {}
    epochs: dict[tuple[int, int], int] = {}
    for event in run.broker:
        place = (event["pid"], event.get("socket", 0))
        if event["what"] == "dial":
            at_dial[place] = highest
        elif event["what"] == "connected":
            before = at_dial.get(place, highest)
            if event["epoch"] is None or event["epoch"] <= before or event["epoch"] in epochs.values():
                yield f"session with epoch {event['epoch']} after {before}"
            epochs[place] = event["epoch"]
            highest = max(highest, event["epoch"] or 0)
        elif event["what"] == "request" and event.get("dispatch") and event["epoch"] != epochs.get(place):
            yield f"{event['dispatch']} carries epoch {event['epoch']} on the socket of {epochs.get(place)}"


# -- P5 -----------------------------------------------------------------------------------------------------


def late_offline(run: Run) -> Iterator[str]:
    """A broker that had a socket throughout the time around a look at it is never seen offline.

    Nothing can be said of a stock broker: it notices a closed socket only after its work.
    """
    spans = list(_connected_spans(run.broker)) if run.dedupes else []
    for event in run.calls:
        if event["what"] == "broker_status" and event["status"] == "offline":
            for began, ended in spans:
                if began + 2 < event["t"] < ended - 2:
                    yield f"broker seen offline at {event['t']:.1f}, connected {began:.1f} to {ended:.1f}"


def _connected_spans(broker: Sequence[Event]) -> Iterator[tuple[float, float]]:
    """From each `connected` to the end of its socket; that of a killed process ends with its last event."""
    ends = ("closed", "closing", "aborting")
    for event in broker:
        if event["what"] == "connected":
            later = [e for e in broker if e["pid"] == event["pid"] and e["t"] >= event["t"]]
            closed = [e["t"] for e in later if e["what"] in ends and e.get("socket") == event["socket"]]
            yield event["t"], min([*closed, max(e["t"] for e in later)])


# -- P6 -----------------------------------------------------------------------------------------------------


def misattributed(run: Run) -> Iterator[str]:
    """The result in a row is an answer that the broker gave to this very intent."""
    for row in run.rows:
        result = row.get("result")
        if isinstance(result, dict) and "echo" in result and result["echo"] != row["id"]:
            yield f"{row['op']} {row['id']} holds the result of {result['echo']}"
        if row["state"] == "done" and row["id"] not in by_dispatch(run, "request"):
            yield f"{row['op']} {row['id']} is done and was never sent"


def untrue(run: Run) -> Iterator[str]:
    """What a caller was told fits how the intent ended."""
    rows = {row["id"]: row for row in run.rows}
    effects = by_dispatch(run, "effect")
    for call in calls_of(run):
        row = rows.get(str(call.dispatch))
        if row is None or call.status is None:
            continue
        told = f"{call.op} {call.dispatch} was told {call.status}"
        if call.op != "message" and call.status in (200, 201, 204) and row["state"] != "done":
            yield f"{told} and is {row['state']}"
        if call.status == 502 and row["state"] != "failed":
            yield f"{told} and is {row['state']}"
        never = (row.get("error") or {}).get("code") in ("broker_timeout", "runtime_broker_unavailable")
        if row["state"] in ("expired", "cancelled") and never and call.dispatch in effects:
            yield f"{told}, ended as if it had not happened, and took effect"


# -- reading ------------------------------------------------------------------------------------------------


def _by_lane(calls: Iterator[Call]) -> dict[tuple[str | None, str | None], list[Call]]:
    found: dict[tuple[str | None, str | None], list[Call]] = defaultdict(list)
    for call in calls:
        found[call.agent, call.lane].append(call)
    return found


def _lane(op: str) -> str:
    return "message" if op == "message" else "control"


def _final(answer: Event | None) -> bool:
    return answer is not None and answer["status"] < 500 and answer["status"] not in (408, 412, 425, 429)
