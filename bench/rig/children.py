"""Processes that a measurement needs: started in groups of their own, ended by their pid, never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from tests.harness.processes import DIES_WITH_PARENT

PATIENCE = 30.0


class Child:
    """One process of ours. What it prints goes to a file, or comes line by line to whoever asks it."""

    def __init__(
        self, module: str, given: Sequence[str], cwd: Path, *, asked: bool, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = cwd / f"{module.rpartition('.')[2]}-{time.monotonic_ns()}.log"
        self._asked = asked
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - what this file starts is ours
                [sys.executable, "-m", module, *given],
                stdin=subprocess.PIPE if asked else subprocess.DEVNULL,
                stdout=subprocess.PIPE if asked else log,
                stderr=log,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=DIES_WITH_PARENT,  # noqa: PLW1509 - one call into libc, no locks
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    async def ask(self, question: Any, patience: float = PATIENCE) -> Any:
        """One line of JSON in, one line of JSON out. Raises: RuntimeError when it has ended."""
        with anyio.fail_after(patience):
            line = await anyio.to_thread.run_sync(self._ask, json.dumps(question), abandon_on_cancel=True)
        if not line:
            raise RuntimeError(f"process {self.pid} ended (exit {self.process.poll()}):\n{self.tail()}")
        return json.loads(line)

    def _ask(self, line: str) -> bytes:
        assert self.process.stdin, "it was started to be asked"
        assert self.process.stdout
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return b""
        return self.process.stdout.readline()

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """`kill -9`, and the wait for its end."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self, patience: float = 15.0) -> None:
        """A process that is asked ends with its standard input; TERM for the others, then KILL."""
        if self.process.stdin:
            self.process.stdin.close()
        elif self.alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(patience)
        if self.process.stdout:
            self.process.stdout.close()


@contextmanager
def child(
    module: str, *given: str, cwd: Path, asked: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[Child]:
    started = Child(module, given, cwd, asked=asked, env=env)
    try:
        yield started
    finally:
        started.stop()
