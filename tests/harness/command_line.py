"""Runs the installed `pointsman` as people do: its own process, on pipes or on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

EXECUTABLE = Path(sys.executable).with_name("pointsman")
LONGEST = 90.0
"""Seconds after which a command is taken for hanging."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    status: int
    out: str
    err: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This one, without what would point a command at some other hub or change its looks."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POINTSMAN_", "LC_")) and name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    }
    return {**ours, "LANG": "C.UTF-8", "TERM": "xterm-256color", "PYTHONWARNINGS": "error", **(extra or {})}


def pointsman(*arguments: str, cwd: Path, extra: Mapping[str, str] | None = None, stdin: bytes = b"") -> Ran:
    done = subprocess.run(
        [str(EXECUTABLE), *arguments],
        cwd=cwd,
        env=environment(extra),
        input=stdin,
        capture_output=True,
        timeout=LONGEST,
        check=False,
    )
    return Ran(status=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


def on_terminal(
    *arguments: str,
    cwd: Path,
    extra: Mapping[str, str] | None = None,
    typed: Mapping[str, str] | None = None,
) -> Ran:
    """All three streams are one terminal, whose text is `out`. `typed`: what is typed once a text was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(EXECUTABLE), *arguments],
        cwd=cwd,
        env=environment({"COLUMNS": "200", **(extra or {})}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = _read_all(ours, dict(typed or {}))
        status = process.wait(10)
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)
    return Ran(status=status, out=shown.decode(), err="")


def _read_all(terminal: int, typed: dict[str, str]) -> bytes:
    shown = b""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            some = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other end is closed.
            return shown
        if not some:
            return shown
        shown += some
        for prompt in [prompt for prompt in typed if prompt.encode() in shown]:
            os.write(terminal, typed.pop(prompt).encode() + b"\n")
    raise TimeoutError(f"still running after {LONGEST} s: {shown!r}")
