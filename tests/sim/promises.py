"""What must be true after a storm, whatever happened in it (design/dispatch.md section 2)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from kernel.clock import SYSTEM
from kernel.intent import Intent, State
from tests.sim.broker import Effect
from tests.sim.calls import Asked
from tests.sim.hubs import Hub

DID_NOT_HAPPEN = frozenset({"broker_timeout", "cancelled", "runtime_broker_unavailable"})
BUSY = 1.0
"""Seconds that a frame may need on a busy machine between the last look at its deadline and its effect."""


def broken(asked: Sequence[Asked], rows: Sequence[Intent], effects: Sequence[Effect]) -> list[str]:
    """Each promise that was not kept, in words."""
    by_id: dict[str, Intent] = {row.id: row for row in rows}
    first = {effect.intent_id: effect.at for effect in reversed(effects)}
    return [
        *(f"P1: {row.id} never ended: {row.state}" for row in rows if row.unfinished),
        *(f"P1: {one} was acknowledged and has no row" for one in asked if one.acknowledged and _gone(one, by_id)),
        *(f"P2: {one} took effect {n} times" for one, n in Counter(e.intent_id for e in effects).items() if n > 1),
        *_untrue(asked, by_id, first),
        *_late(rows, first),
        *_overtaken(asked, first),
    ]


def _gone(one: Asked, by_id: dict[str, Intent]) -> bool:
    return one.intent_id not in by_id


def _untrue(asked: Sequence[Asked], by_id: dict[str, Intent], first: dict[str, float]) -> Iterator[str]:
    for row in by_id.values():
        code = row.error.code if row.error else ""
        if (code in DID_NOT_HAPPEN and row.id in first) or (row.state is State.DONE and row.id not in first):
            yield f"P6: {row.id} ended {row.state} {code}; effect: {row.id in first}"
    for one in asked:
        stored = by_id.get(one.intent_id or "")
        if one.told in DID_NOT_HAPPEN and one.intent_id in first:
            yield f"P6: told that it did not happen, and it did: {one}"
        if one.told == "done" and stored is not None and stored.state is not State.DONE:
            yield f"P6: told that it is done, and its row is {stored.state}: {one}"
        if one.told == "not_found":
            yield f"P6: told of a dispatch of which nobody knows: {one}"


def _late(rows: Sequence[Intent], first: dict[str, float]) -> Iterator[str]:
    """Past its deadline nothing is sent."""
    for row in rows:
        due = SYSTEM.monotonic() - (SYSTEM.now() - row.deadline_at) / 1_000_000
        if first.get(row.id, 0.0) > due + BUSY:
            yield f"{row.id} took effect {first[row.id] - due:.2f} s past its deadline"


def _overtaken(asked: Sequence[Asked], first: dict[str, float]) -> Iterator[str]:
    lanes: defaultdict[tuple[str, str], list[Asked]] = defaultdict(list)
    for one in asked:
        if one.intent_id in first:
            lanes[one.lane].append(one)
    for calls in lanes.values():
        for one in calls:
            for later in calls:
                if one.acknowledged and later.at > one.told_at and _at(later, first) < _at(one, first):
                    yield f"P3: {later} took effect before {one}"


def _at(one: Asked, first: dict[str, float]) -> float:
    return first[one.intent_id or ""]


def left_over(hub: Hub) -> list[str]:
    """What a hub with nothing to do still holds."""
    story, drain = hub.parts.story, hub.parts.drain
    found = [f"{work.intent.id} is still in hand" for work in story.delivery.lanes.works()]
    found += [f"somebody still waits for {one}" for one in story.waiters._waiting]
    for link in story.links.all():
        if not link.settled or link.window._free != link.window.size:
            found.append(f"a place of {link.session.broker_id} is still taken")
    return found + ["a task still claims"] * bool(drain._woken or drain._hints)
