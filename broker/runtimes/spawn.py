"""Starts keepers: the lock first, then the process that inherits it, then its word that the agent runs."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

import broker.keep
from broker.answer import Refusal
from broker.keeping.child import exit_of
from broker.runtimes.kept import ended_by, state_of

_HANDSHAKE = 30.0
"""Seconds in which a keeper says whether its agent runs."""
_PASSED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
"""What the keeper itself needs of our environment; the agent's is in its orders."""
LOCK_PLACE = 3
"""The keeper's number for the lock that it inherits."""


def locked(path: Path, run: str) -> int:
    """The agent's lock, with the run's name in it. Waits for a keeper that is about to leave.

    Raises: Refusal.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + 5.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.01)
                continue
            os.close(lock)
            raise Refusal(
                503, "still_running", "an earlier run of the agent has not ended yet", retry_after=2
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, run.encode(), 0)
        return lock


def start_keeper(orders: dict[str, Any], lock: int, run: Path) -> tuple[int, str | None]:
    """Start a keeper and wait until it says whether its agent runs: its pid, and why the agent does not run."""
    stdin, orders_end = os.pipe()
    told, stdout = os.pipe()
    errors = os.open(run / "keeper.err", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    far = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (stdin, stdout, errors, lock)]
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-X", "utf8", broker.keep.__file__],
            {name: os.environ[name] for name in _PASSED if name in os.environ},
            file_actions=[(os.POSIX_SPAWN_DUP2, one, place) for place, one in enumerate(far)],
        )
    finally:
        for one in (stdin, stdout, errors, *far):
            os.close(one)
    try:
        with os.fdopen(orders_end, "wb") as file:
            file.write(msgspec.json.encode(orders))
        heard = os.read(told, 65_536) if select.select([told], [], [], _HANDSHAKE)[0] else b""
    except BrokenPipeError:
        heard = b""
    finally:
        os.close(told)
    if not heard:
        return pid, _undo(pid, run)
    failed: str | None = msgspec.json.decode(heard)["failed"]
    if failed is not None:
        _reap(pid)
    return pid, failed


def _undo(pid: int, run: Path) -> str:
    """The keeper died or does not say anything: nothing of it may go on."""
    if exit_of(pid) is None:
        os.kill(pid, 9)
        _reap(pid)
    ended_by(state_of(run))
    why = (run / "keeper.err").read_text(encoding="utf-8", errors="replace").strip()
    return f"its keeper did not start: {why[-500:] or 'it said nothing'}"


def _reap(pid: int) -> None:
    while exit_of(pid) is None:
        time.sleep(0.01)
