"""The log of one agent: what it prints, rotated by size, and the status lines in it."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import Any

STATUS = b"::status "
_FIELDS = ("activity", "detail")
_LONGEST_LINE = 65_536
_TAIL_LINES = 20
_TAIL_BYTES = 4096


class AgentLog:
    """Appends to `path`; past `limit` bytes it becomes `path.1`, and so on up to `path.<files>`."""

    def __init__(self, path: Path, limit: int, files: int) -> None:
        self._path = path
        self._limit = limit
        self._files = files
        self._file = self._open()
        self._size = os.fstat(self._file).st_size
        self._line = b""
        self._overlong = False
        self._tail: deque[bytes] = deque(maxlen=_TAIL_LINES)

    def write(self, data: bytes) -> list[dict[str, Any]]:
        """Keep what the agent printed; answers the statuses that it reported in it.

        A full disk costs the text, never the agent.
        """
        try:
            if self._size + len(data) > self._limit:
                self._rotate()
            self._size += os.write(self._file, data)
        except OSError:
            pass
        return self._statuses(data)

    def tail(self) -> str:
        """Its last lines but for statuses, at most 4 KiB."""
        lines = [*self._tail, self._line] if self._line else list(self._tail)
        return b"\n".join(lines)[-_TAIL_BYTES:].decode(errors="replace")

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _rotate(self) -> None:
        if self._size == 0:
            return
        for n in range(self._files, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{n}")
            newer = self._path.with_name(f"{self._path.name}.{n - 1}") if n > 1 else self._path
            if newer.exists():
                newer.replace(older)
        os.close(self._file)
        self._file = self._open()
        self._size = 0

    def _statuses(self, data: bytes) -> list[dict[str, Any]]:
        *lines, rest = (self._line + data).split(b"\n")
        if lines and self._overlong:
            self._overlong = False
            lines = lines[1:]
        self._tail.extend(line[:_TAIL_BYTES] for line in lines if not line.startswith(STATUS))
        self._overlong = self._overlong or len(rest) > _LONGEST_LINE
        self._line = b"" if self._overlong else rest
        return [found for line in lines if (found := _status(line)) is not None]


def _status(line: bytes) -> dict[str, Any] | None:
    """What a line `::status {"activity": …, "detail": …}` reports; None when it is another line."""
    if not line.startswith(STATUS):
        return None
    try:
        found = json.loads(line[len(STATUS) :])
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return {name: found[name] for name in _FIELDS if name in found} if isinstance(found, dict) else None


def last_lines(path: Path, files: int, lines: int, most: int) -> bytes:
    """The last `lines` lines of a log and its rotated parts, and of these the last `most` bytes."""
    found = b""
    for n in range(files + 1):
        part = path.with_name(f"{path.name}.{n}") if n else path
        if len(found) >= most or found.count(b"\n") > lines or not part.exists():
            break
        found = _end_of(part, most - len(found)) + found
    kept = found.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept)[-most:]


def _end_of(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most))
        return file.read(most)
