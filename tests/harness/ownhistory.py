"""The history of our own broker: what passed at the doors, and what its agents saw, told as a scripted broker tells it.

An effect is what an agent noticed: a run that began, a message that it read, an end that it was asked for. Each is
given to the operation that asked for it; one that nobody asked for is told as `unasked`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from tests.harness.history import Event
from tests.harness.inbox import PASSING

STARTS = frozenset({"create", "start", "restart"})
STOPS = frozenset({"stop", "suspend", "delete"})
LEAVING = 15.0
"""Seconds in which a broker that was told to stop may end its agents."""


def whole(wire: Sequence[Event], agents: Sequence[Event], left: Sequence[float] = ()) -> list[Event]:
    """All events by time. `left` are the instants at which the broker was told to stop, its agents with it."""
    asked = Asked(wire)
    seen = [_effect(asked, event, left) for event in agents]
    return sorted((*wire, *seen), key=lambda event: float(event["t"]))


class Asked:
    """The requests that reached the broker, and for how long each was at work."""

    def __init__(self, wire: Sequence[Event]) -> None:
        self.of_run: dict[str, Event] = {}
        self._first: dict[str, Event] = {}
        self._of_agent: dict[Any, list[Event]] = defaultdict(list)
        self._over: dict[str, float] = {}
        names: dict[str, str] = {}
        for event in wire:
            if event["what"] == "request" and event.get("dispatch"):
                names[event["requestId"]] = event["dispatch"]
                self._take(event)
            elif event["what"] == "answer" and _final(event["status"]) and event["requestId"] in names:
                self._over.setdefault(names[event["requestId"]], event["t"])

    def _take(self, event: Event) -> None:
        if event["dispatch"] in self._first:
            return
        self._first[event["dispatch"]] = event
        self._of_agent[event["agent"]].append(event)
        if event["op"] in STARTS and isinstance(event["json"], dict) and event["json"].get("runId"):
            self.of_run[event["json"]["runId"]] = event

    def at_work(self, agent: str, t: float) -> Iterator[Event]:
        """What may end a run of this agent at this instant: asked for, and not answered for good."""
        for event in self._of_agent[agent]:
            if event["op"] in STARTS | STOPS and event["t"] <= t <= self._over.get(event["dispatch"], t):
                yield event


def _effect(asked: Asked, event: Event, left: Sequence[float]) -> Event:
    """What one event of an agent is in the history."""
    if event["what"] == "effect":
        return event
    began = asked.of_run.get(event["run"])
    if began is None:
        return {**event, "what": "unasked", "why": f"run {event['run']} was not asked for ({event['what']})"}
    if event["what"] == "run_began":
        return {**event, "what": "effect", **_named(began)}
    ending = list(asked.at_work(began["agent"], event["t"]))
    if len(ending) == 1 and ending[0]["op"] in STOPS:
        return {**event, "what": "effect", **_named(ending[0])}
    if ending or any(t <= event["t"] <= t + LEAVING for t in left):
        return event
    return {**event, "what": "unasked", "why": f"run {event['run']} of {began['agent']} was ended and nobody had asked"}


def _named(request: Event) -> dict[str, Any]:
    return {name: request[name] for name in ("op", "agent", "dispatch")}


def _final(status: int) -> bool:
    return status < 500 and status not in PASSING
