"""All that is known of one run: what callers were told, what one broker saw and did, and the hubs' rows at the end.

Three sources, by the same monotonic clock of the machine: `calls.jsonl` (each call with the hub it went to), the
broker's `history.jsonl`, and the rows of intents and of their steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.harness.history import Event

ENDED = frozenset({"done", "failed", "expired", "cancelled"})
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an operation and what became of it; `answered` is None when the connection broke."""

    op: str
    agent: str | None
    lane: str | None
    called: float
    answered: float | None
    status: int | None
    dispatch: str | None

    @property
    def acknowledged(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, kw_only=True)
class Run:
    """One broker's part of a run. `rows` are read when everything should have ended."""

    calls: Sequence[Event]
    broker: Sequence[Event]
    rows: Sequence[Row]
    steps: Sequence[Row] = ()
    """The table `transitions`, in the order of each intent's steps; empty where it was not read."""
    dedupes: bool = True
    """The broker announced `dedupe`."""
    sweep: float = 5.0
    """Seconds after its deadline in which an intent must have ended: one sweep and some patience."""
    crashed: bool = False
    """The database went down hard: claims and ends that were committed without a flush may have been undone."""
    forgotten: tuple[float, float] | None = None
    """What was acknowledged between these instants is lost by a failover that lost it: nobody can keep it."""

    def may_be_forgotten(self, call: Call) -> bool:
        return bool(self.forgotten and call.answered and self.forgotten[0] <= call.answered <= self.forgotten[1])


def calls_of(run: Run) -> list[Call]:
    """The operations that callers asked for, each with its answer."""
    answers = {event["call"]: event for event in run.calls if event["what"] == "answered"}
    agents = {row["id"]: row.get("agentId") for row in run.rows}
    found = []
    for event in run.calls:
        if event["what"] == "call" and event.get("op"):
            answer = answers.get(event["call"], {})
            found.append(
                Call(
                    op=event["op"],
                    agent=event.get("agent") or agents.get(str(answer.get("dispatch"))),
                    lane=event.get("lane"),
                    called=event["t"],
                    answered=answer.get("t"),
                    status=answer.get("status"),
                    dispatch=answer.get("dispatch"),
                )
            )
    return found


def by_dispatch(run: Run, what: str) -> dict[str, list[Event]]:
    """The broker's events of one kind that name an intent."""
    found: dict[str, list[Event]] = defaultdict(list)
    for event in run.broker:
        if event["what"] == what and event.get("dispatch"):
            found[event["dispatch"]].append(event)
    return found


def instant(text: str) -> float:
    """Unix seconds of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()
