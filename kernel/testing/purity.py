"""Sees what a function calls that is not in its arguments: clocks, chance, files, sockets, threads."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

FILES = {"_io", "io", "nt", "posix", "os", "_sqlite3", "sqlite3"}
NETWORK = {"_socket", "socket", "_ssl", "select"}
PROCESSES = {"_posixsubprocess", "_thread", "signal"}
CLOCKS_AND_CHANCE = {"time", "random", "_random"}
OUTSIDE = FILES | NETWORK | PROCESSES | CLOCKS_AND_CHANCE
"""C modules whose functions read or change the world."""


@contextmanager
def watched() -> Iterator[set[str]]:
    """The names of functions outside of the request's world that are called meanwhile, as far as this thread calls
    them from Python code."""
    seen: set[str] = set()

    def note(_frame: object, event: str, called: Any) -> None:
        if event == "c_call" and (name := _outside(called)):
            seen.add(name)

    before, collecting = sys.getprofile(), gc.isenabled()
    gc.disable()  # what it ends would be taken for the strategy's doing
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()


def _outside(called: Any) -> str | None:
    name = str(getattr(called, "__name__", ""))
    owner = getattr(called, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, date):
        return f"datetime.{name}" if name in ("now", "utcnow", "today") else None
    module = getattr(called, "__module__", None) or type(owner).__module__
    if module in OUTSIDE or (module == "builtins" and name in ("open", "print", "input")):
        return f"{module}.{name}" if name != "setprofile" else None
    return None
