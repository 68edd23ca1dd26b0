"""One side command of the keeper: an `exec`, or the command that delivers a message."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from broker.keeping.child import Child

OUTPUT_LIMIT = 2 * 1024 * 1024
"""Bytes of output that are kept; the rest is read and dropped, so that the command does not hang."""


class Job:
    """Runs beside the agent with its environment; `over` is called once, with what became of it."""

    def __init__(
        self, child: Child, stdin: bytes, until: float, over: Callable[[dict[str, Any]], None], *, delivers: bool
    ) -> None:
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
        told: dict[str, Any] = {"exitCode": exit_code, "output": self._output.decode(errors="replace")}
        if self._timed_out:
            told["timedOut"] = True
        if self._truncated:
            told["truncated"] = True
        self._over(told)
