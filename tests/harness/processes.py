"""Child processes of a test: started in a group of their own, signalled by pid, never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import anyio

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds that a test waits for what should come at once: generous, for two busy cores."""

T = TypeVar("T")


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PARENT_DEATH_SIGNAL = 1


def _die_with_parent() -> None:
    if LIBC:
        LIBC.prctl(PARENT_DEATH_SIGNAL, int(signal.SIGKILL))


DIES_WITH_PARENT = _die_with_parent if LIBC else None
"""Run by a child before its program, so that who is killed itself leaves nothing behind. For the main thread's."""


class Late(AssertionError):
    """Something did not happen within its bounded wait."""


async def eventually(
    probe: Callable[[], Awaitable[T | None]], what: str, *, patience: float = PATIENCE, every: float = 0.05
) -> T:
    """The first answer of `probe` that is neither None nor False. Raises: Late."""
    end = time.monotonic() + patience
    while True:
        if found := await probe():
            return found
        if time.monotonic() > end:
            raise Late(f"after {patience:g} s still not: {what}")
        await anyio.sleep(every)


class Child:
    """One child process with its log; `stop` works in any state, also frozen or dead."""

    def __init__(self, arguments: list[str], log: Path, *, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,
                preexec_fn=DIES_WITH_PARENT,  # noqa: PLW1509 - one call into libc, no locks
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """`kill -9`, and the wait for its end."""
        self.send(signal.SIGKILL)
        self._process.wait(10)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    async def ended(self, patience: float = PATIENCE) -> int:
        """Its exit code, awaited. Raises: Late."""

        async def code() -> tuple[int] | None:
            return None if self.exit_code is None else (self.exit_code,)

        return (await eventually(code, f"end of process {self.pid}", patience=patience))[0]

    def stop(self, patience: float = 5.0) -> None:
        """TERM, then KILL; for the end of a test, when nobody waits politely any more."""
        self.thaw()
        self.send(signal.SIGTERM)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, lines: int = 60) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


@contextlib.contextmanager
def shown_on_failure(*children: Callable[[], Child | None]) -> Iterator[None]:
    """Prints the tails of the logs when the block fails, so that pytest shows them with the failure."""
    try:
        yield
    except BaseException:
        for find in children:
            if child := find():
                print(f"--- {child.log} (pid {child.pid}, exit {child.exit_code})\n{child.tail()}", file=sys.stderr)
        raise
