"""The course of a dispatch as lines: every step once, in order, with the milliseconds between."""

from __future__ import annotations

from typing import Any

from kernel.cli.timeline import timeline

ENTRY, OWNER, NEXT = "entry-node", "owner-node", "next-node"


def at(milliseconds: int) -> str:
    return f"2026-11-25T09:30:{milliseconds // 1000:02}.{milliseconds % 1000:03}000Z"


def step(when: int, came_from: str, to: str, reason: str, node: str, **more: Any) -> dict[str, Any]:
    return {"at": at(when), "from": came_from, "to": to, "reason": reason, "nodeId": node, "detail": {}, **more}


def dispatch(**more: Any) -> dict[str, Any]:
    return {"id": "i-1", "op": "start", "agentSlug": "worker", "state": "done", "claimedBy": OWNER, **more}


FORWARDED = [
    step(0, "accepted", "routed", "forward", ENTRY, detail={"reason": "held_elsewhere", "by": "kernel", "to": OWNER}),
    step(2, "routed", "pending", "recorded", ENTRY),
    step(5, "pending", "in_progress", "claimed", OWNER, attempt=1, epoch=7),
]


def test_a_forwarded_call_is_told_from_its_acceptance_to_its_end() -> None:
    ended = step(1030, "in_progress", "done", "answered", OWNER, attempt=1, epoch=7)
    lines = timeline(dispatch(sentAt=at(6), acceptedAt=at(10)), [*FORWARDED, ended])
    assert lines[0].startswith("start worker i-1: done; accepted 2026-11-25 ")
    assert [line.split() for line in lines[1:]] == [
        words.split()
        for words in (
            "0.0 ms +0.0 A accepted, route forward (held elsewhere); hub B is woken once it is recorded",
            "2.0 ms +2.0 A recorded",
            "5.0 ms +3.0 B claimed: attempt 1, epoch 7",
            "6.0 ms +1.0 B sent to the broker",
            "10.0 ms +4.0 B taken by the broker",
            "1030.0 ms +1020.0 B done: answered",
            f"A = hub {ENTRY}",
            f"B = hub {OWNER}",
        )
    ]


def test_a_lost_owner_and_the_next_one_are_both_named() -> None:
    steps = [
        *FORWARDED,
        step(6000, "in_progress", "pending", "owner_lost", NEXT, attempt=1, epoch=7),
        step(6001, "pending", "in_progress", "claimed", NEXT, attempt=2, epoch=8),
    ]
    lines = timeline(dispatch(state="in_progress", claimedBy=NEXT, sentAt=at(6002)), steps)
    assert "put back: its hub was lost" in lines[4]
    assert lines[6].split()[3:] == ["C", "sent", "to", "the", "broker"]
    assert lines[-1] == f"C = hub {NEXT}"


def test_a_local_call_has_no_row_before_its_end() -> None:
    steps = [
        step(0, "accepted", "routed", "local", ENTRY, detail={"reason": "socket_here", "by": "local"}),
        step(1, "routed", "in_progress", "in_hand", ENTRY, attempt=1, epoch=7),
        step(4, "in_progress", "failed", "broker_500", ENTRY, attempt=1, epoch=7),
    ]
    told = "\n".join(timeline(dispatch(state="failed", claimedBy=ENTRY, sentAt=at(1)), steps))
    assert "in hand at once: attempt 1" in told
    assert "failed: broker 500" in told


def test_what_has_no_history_has_no_timeline() -> None:
    assert timeline(dispatch(), []) == []
