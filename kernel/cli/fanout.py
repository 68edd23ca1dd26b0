"""Says something to many agents in one request, and tells what became of each message."""

from __future__ import annotations

from typing import Any

import anyio

from kernel.cli import show
from kernel.cli.client import Change, Hub
from kernel.cli.exits import Exit
from kernel.cli.failure import CommandFailed
from kernel.cli.operation import Waiting
from kernel.cli.progress import Progress, open_progress
from kernel.clock import SYSTEM
from kernel.intent import ENDED

FIRST_LOOK, LAST_LOOK = 0.1, 1.0
"""Seconds between two looks; they grow from one to the other."""
BAD = frozenset({"failed", "expired", "cancelled"})
Row = dict[str, Any]


async def say_to_many(hub: Hub, change: Change, waiting: Waiting, *, as_json: bool) -> Exit:
    """Send it; with `waiting.follow` wait until each message ended. Shows one line for each recipient.

    Raises: CommandFailed when the hub took none of it.
    """
    end = SYSTEM.monotonic() + waiting.budget
    answer = await hub.insist(change, patience=waiting.patience, prefer=_delivery(waiting))
    if answer.status >= 400:
        raise hub.refused(answer)
    told: Row = answer.document
    if waiting.follow:
        with open_progress(silent=as_json) as progress:
            told = await _followed(hub, told, end, progress)
    if as_json:
        show.document(told)
    else:
        _tell(told)
    return _exit(told, waiting)


def _delivery(waiting: Waiting) -> Any:
    """Nobody waits in the request itself."""
    headers = {name: value for name, value in waiting.headers(0.0).items() if name != "Prefer"}
    if waiting.delivery:
        headers["Prefer"] = f"deliver={waiting.delivery}"
    return lambda _: headers


async def _followed(hub: Hub, told: Row, end: float, progress: Progress) -> Row:
    """The answer with the states of its messages, when all have ended or the time is over."""
    pause = FIRST_LOOK
    while True:
        try:
            listed = await hub.pages("/dispatches", "dispatches", groupId=told["groupId"])
            told = _updated(told, {row["id"]: row for row in listed["dispatches"]})
        except CommandFailed as failed:
            if failed.exit_code != Exit.NO_HUB:
                raise
        left = sum(1 for one in _accepted(told) if one["dispatchState"] not in ENDED)
        progress.tell(f"message: {left} of {len(_accepted(told))} not ended yet")
        if not left or SYSTEM.monotonic() + pause >= end:
            return told
        await anyio.sleep(pause)
        pause = min(pause * 1.5, LAST_LOOK)


def _updated(told: Row, rows: dict[str, Row]) -> Row:
    results = []
    for one in told["results"]:
        row = rows.get(one.get("messageId") or "")
        error = {"error": row["error"]} if row and row.get("error") and row["state"] in BAD else {}
        results.append({**one, "dispatchState": row["state"], **error} if row else one)
    return {**told, "results": results}


def _accepted(told: Row) -> list[Row]:
    return [one for one in told["results"] if one.get("messageId")]


def _tell(told: Row) -> None:
    rows = [
        (
            one["recipient"].removeprefix("agent:"),
            one.get("messageId"),
            one["dispatchState"],
            (one.get("error") or {}).get("message"),
        )
        for one in told["results"]
    ]
    show.table(("AGENT", "MESSAGE", "STATE", "ERROR"), rows)
    if not rows:
        show.note("there is no agent to be told")
        return
    refused = len(rows) - len(_accepted(told))
    show.note(f"{len(_accepted(told))} accepted, {refused} refused" if refused else f"{len(rows)} accepted")
    show.note(f"`pointsman dispatch list --group {told['groupId']}` tells what became of each")


def _exit(told: Row, waiting: Waiting) -> Exit:
    """The worst of all: ended badly, not ended when the wait was over, refused."""
    states = {one["dispatchState"] for one in _accepted(told)}
    if waiting.follow and states & BAD:
        return Exit.ENDED_BADLY
    if waiting.follow and not states <= ENDED:
        return Exit.UNKNOWN
    return Exit.DONE if len(_accepted(told)) == len(told["results"]) else Exit.REFUSED
