"""The keeper's side commands: an `exec`, or the command that delivers a message."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

from broker.keeping.child import Child

OUTPUT_LIMIT = 2 * 1024 * 1024
"""Bytes of output that are kept; the rest is read and dropped, so that the command does not hang."""


Told = dict[str, Any]
Over = Callable[[Told], None]


class Job:
    """Runs beside the agent with its environment; `over` is called once, with what became of it."""

    def __init__(self, child: Child, stdin: bytes, until: float, over: Over, *, delivers: bool) -> None:
        self.child = child
        self.until = until
        self.delivers = delivers
        """Whether it carries a message: one at a time does."""
        self.hungry = True
        """Its input is open: a pipe's number that was closed may be somebody else's by now."""
        self._stdin = stdin
        self._over = over
        self._output = bytearray()
        self._truncated = False
        self._timed_out = False

    def drain(self) -> bool:
        """Read what is there; False when its output was closed."""
        while data := self.child.read():
            room = OUTPUT_LIMIT - len(self._output)
            self._truncated = self._truncated or len(data) > room
            self._output += data[:room]
        return data is None

    def feed(self) -> bool:
        """Write what its input takes; False when nothing is left to write and its input was closed."""
        try:
            self._stdin = self._stdin[self.child.write(self._stdin) :]
        except BrokenPipeError:
            self._stdin = b""
        self.hungry = bool(self._stdin)
        if not self.hungry:
            os.close(self.child.stdin)
        return self.hungry

    def kill(self) -> None:
        self.child.signal_group(signal.SIGKILL)

    def overdue(self, now: float) -> None:
        if self.until <= now:
            self.until = float("inf")
            self._timed_out = True
            self.kill()

    def end(self, exit_code: int) -> None:
        """It ended, and with it whatever it left running."""
        self.kill()
        self.drain()
        os.close(self.child.stdout)
        if self.hungry:
            os.close(self.child.stdin)
        told: Told = {"exitCode": exit_code, "output": self._output.decode(errors="replace")}
        if self._timed_out:
            told["timedOut"] = True
        if self._truncated:
            told["truncated"] = True
        self._over(told)


class Jobs:
    """All that run now, by pid."""

    def __init__(self, selector: selectors.BaseSelector, spawn: Callable[[list[str]], Child]) -> None:
        self._selector = selector
        self._spawn = spawn
        self._running: dict[int, Job] = {}

    def start(self, command: list[str], stdin: bytes, limit: float, over: Over, *, delivers: bool) -> Job | None:
        """None when it could not be started; `over` was told."""
        child = self._spawn(command)
        why = child.open_gate()
        if why:
            child.close()
            over({"exitCode": 127, "output": why})
            return None
        job = self._running[child.pid] = Job(child, stdin, time.monotonic() + limit, over, delivers=delivers)
        self._selector.register(child.stdout, selectors.EVENT_READ, lambda: self._drain(job))
        self._selector.register(child.stdin, selectors.EVENT_WRITE, lambda: self._feed(job))
        return job

    def ended(self, pid: int, code: int) -> None:
        """A child of the keeper ended; it may be none of these."""
        job = self._running.pop(pid, None)
        if job:
            self._forget(job.child.stdout)
            if job.hungry:
                self._forget(job.child.stdin)
            job.end(code)

    def overdue(self, now: float) -> None:
        for job in self._running.values():
            job.overdue(now)

    def due(self) -> list[float]:
        return [job.until for job in self._running.values()]

    def deliver(self) -> bool:
        """Whether a message is on its way."""
        return any(job.delivers for job in self._running.values())

    def end_all(self) -> None:
        for job in list(self._running.values()):
            job.end(128 + signal.SIGKILL)

    def _drain(self, job: Job) -> None:
        if not job.drain():
            self._forget(job.child.stdout)

    def _feed(self, job: Job) -> None:
        pipe = job.child.stdin
        if not job.feed():
            self._forget(pipe)

    def _forget(self, pipe: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(pipe)
