"""What happened in one run, one JSON line an event, still there after `kill -9` of whoever wrote it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Event = dict[str, Any]
"""`t` monotonic seconds of this machine, `wall` Unix seconds, `pid`, `what`, and what belongs to it."""


class History:
    """Appends events. Each is one write to the file: a killed process loses none that it had written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, **more: Any) -> Event:
        event = {"t": time.monotonic(), "wall": time.time(), "pid": os.getpid(), "what": what, **more}
        os.write(self._file, json.dumps(event, separators=(",", ":")).encode() + b"\n")
        return event

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Event]:
    """All events in the order of writing; a line that is still being written is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def gaps(history: Sequence[Event]) -> list[float]:
    """For how long a scripted broker had no session, each time: between two of them, or nothing if they overlap."""
    found, open_sockets, lost = [], 0, None
    for event in history:
        if event["what"] == "connected":
            open_sockets += 1
            if lost is not None:
                found.append(event["t"] - lost)
                lost = None
        elif event["what"] == "closed":
            open_sockets -= 1
            lost = event["t"] if not open_sockets else None
    return found


def matching(events: list[Event], wanted: dict[str, Any]) -> Iterator[Event]:
    """Events whose fields equal what is wanted; a callable is asked instead."""
    for event in events:
        if all(_fits(event.get(name), value) for name, value in wanted.items()):
            yield event


def _fits(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Callable):  # type: ignore[arg-type]
        return bool(wanted(found))
    return bool(found == wanted)
