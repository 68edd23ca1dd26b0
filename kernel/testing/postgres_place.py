"""Where a PostgreSQL of ours lives: its folder, its port, and its processes among all others."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

HOST = "127.0.0.1"
PREFIX = "pointsman-pg-"


def free_port() -> int:
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def new_folder() -> tuple[Path, IO[str]]:
    """A folder that another account can enter and whose path is short enough for a socket; locked while in use."""
    roots = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 - made by mkdtemp
    open_to_all = (root for root in roots if len(str(root)) < 60 and _can_be_entered(root))
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=next(open_to_all, roots[0])))
    lock = (home / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return home, lock


def _can_be_entered(folder: Path) -> bool:
    return folder.is_dir() and all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))


def remove_leftovers() -> None:
    """Folders of runs that were killed: nobody holds their locks any more."""
    for root in {tempfile.gettempdir(), "/tmp", "/var/tmp"}:  # noqa: S108 - only what is ours by name and free
        for lock in Path(root).glob(f"{PREFIX}*/lock"):
            with contextlib.suppress(OSError), lock.open() as file:
                if time.time() - lock.stat().st_mtime < 60:
                    continue  # its maker may be about to lock it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


def signalled(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children(parent: int) -> list[int]:
    """Of a live process. They lead sessions of their own: no group holds them together."""
    return [pid for pid, of in _processes() if of == parent]


def _processes() -> Iterator[tuple[int, int]]:
    """Every process with its parent's id."""
    if sys.platform == "linux":
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # The name in parentheses may hold anything.
                yield int(stat.parent.name), int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
    else:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)  # noqa: S607
        yield from ((int(pid), int(of)) for pid, of in map(str.split, listed.stdout.splitlines()))
