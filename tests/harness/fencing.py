"""Names what several hubs did that the fence or the key should have kept them from (P2, P4): by calls and steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from tests.harness.run import ENDED, Row, Run, by_dispatch


def one_key_two_intents(run: Run) -> Iterator[str]:
    """One idempotency key names one intent, whichever hubs it was told to."""
    named: dict[str, set[str]] = defaultdict(set)
    for event in run.calls:
        if event["what"] == "answered" and event.get("key") and event.get("dispatch"):
            named[event["key"]].add(event["dispatch"])
    known = {row["id"] for row in run.rows}
    for key, found in named.items():
        if len(found & known if run.forgotten else found) > 1:
            yield f"key {key} named {sorted(found)}"


def two_owners(run: Run) -> Iterator[str]:
    """An epoch belongs to one node."""
    owners: dict[int, set[str]] = defaultdict(set)
    for step in run.steps:
        if step["reason"] == "claimed":
            owners[step["epoch"]].add(step["node_id"])
    for epoch, nodes in owners.items():
        if len(nodes) > 1:
            yield f"epoch {epoch} was used by nodes {sorted(nodes)}"


def broken_chain(run: Run) -> Iterator[str]:
    """Each step begins where the one before ended, and nothing follows an end."""
    for intent, steps in _by_intent(run).items():
        for former, later in pairwise(steps):
            if later["n"] != former["n"] + 1 or later["from_state"] != former["to_state"]:
                yield f"{intent}: {_told(former)} is followed by {_told(later)}"
            if former["to_state"] in ENDED:
                yield f"{intent}: {_told(later)} after it had ended"


def stolen_end(run: Run) -> Iterator[str]:
    """Who ends an intent that is in hand holds its last claim; and claims only ever grow."""
    for intent, steps in _by_intent(run).items():
        last = (0, 0)
        for step in steps:
            fence = (step["epoch"] or 0, step["attempt"] or 0)
            if step["to_state"] == "in_progress":
                if fence <= last:
                    yield f"{intent}: claim {fence} after claim {last}"
                last = fence
            elif step["from_state"] == "in_progress" and step["to_state"] == "done" and fence != last:
                yield f"{intent}: {_told(step)} by {fence}, claimed by {last}"


def unclaimed_frame(run: Run) -> Iterator[str]:
    """What was sent had been claimed, with that epoch and attempt, on disk. A LOCAL call's first need not be."""
    if run.crashed:
        return
    recorded = _by_intent(run)
    claims = {(s["intent_id"], s["epoch"], s["attempt"]) for s in run.steps if s["to_state"] == "in_progress"}
    local = {intent for intent, steps in recorded.items() if steps[0]["reason"] == "local"}
    for dispatch, asked in by_dispatch(run, "request").items():
        for event in asked:
            fence = (event["epoch"], event["attempt"])
            unwritten = dispatch in local and event["attempt"] == 1
            if dispatch in recorded and not unwritten and (dispatch, *fence) not in claims:
                yield f"{event['op']} {dispatch} was sent with {fence}, which nobody had claimed"


def row_and_steps_differ(run: Run) -> Iterator[str]:
    """A row's state is where its last step led."""
    last = {intent: steps[-1]["to_state"] for intent, steps in _by_intent(run).items()}
    for row in run.rows:
        if run.steps and last.get(row["id"]) != row["state"]:
            yield f"{row['op']} {row['id']} is {row['state']}, its last step led to {last.get(row['id'])}"


CHECKS: tuple[Callable[[Run], Iterator[str]], ...] = (
    one_key_two_intents,
    two_owners,
    broken_chain,
    stolen_end,
    unclaimed_frame,
    row_and_steps_differ,
)


def _by_intent(run: Run) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for step in run.steps:
        found[step["intent_id"]].append(step)
    return {intent: sorted(steps, key=lambda step: int(step["n"])) for intent, steps in found.items()}


def _told(step: Row) -> str:
    return f"{step['n']} {step['from_state']} → {step['to_state']} ({step['reason']})"
