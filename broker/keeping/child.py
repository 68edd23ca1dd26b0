"""Starts a command behind a gate, so that nothing of it runs before its starter has written down who it is."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

_RESET = (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
_READ = 65_536
_PR_SET_CHILD_SUBREAPER = 36


class Child:
    """One command in a session of its own; its pid is also its process group.

    `stdin` and `stdout` are our ends of its pipes, non-blocking; what it prints on stderr comes on `stdout` too.
    A starter that dies before `open_gate` takes the command with it: it never ran.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], workdir: str, umask: int) -> None:
        gate, self._gate = os.pipe()
        self._fate, fate = os.pipe()
        stdin, self.stdin = os.pipe()
        self.stdout, stdout = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            _become(command, env, workdir, umask, (gate, fate, stdin, stdout))
        for end in (gate, fate, stdin, stdout):
            os.close(end)
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)

    def open_gate(self) -> str | None:
        """Let it run. Answers why it could not, None when it runs."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._gate, b"go")
        os.close(self._gate)
        told = b"".join(iter(lambda: os.read(self._fate, _READ), b""))
        os.close(self._fate)
        return told.decode(errors="replace") or None

    def signal_group(self, number: int) -> bool:
        """Signal it and all that it started; False when none of them is left."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def write(self, data: bytes) -> int:
        """How many bytes its standard input took now. Raises: BrokenPipeError when it was closed."""
        try:
            return os.write(self.stdin, data)
        except BlockingIOError:
            return 0

    def read(self) -> bytes | None:
        """What it printed; None when there is nothing now, empty when it closed its output."""
        try:
            return os.read(self.stdout, _READ)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """For one that never ran: give back its pipes, and its process to the system."""
        os.close(self.stdin)
        os.close(self.stdout)
        os.waitpid(self.pid, 0)


def exit_of(pid: int) -> int | None:
    """The exit code of a child that ended, 128 + n for signal n; None while it runs."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 255
    return None if found == 0 else _code(status)


def adopt_orphans() -> None:
    """Become the parent of what our children leave behind, where the system knows that (Linux).

    Otherwise dead orphans may stay in the agent's group for as long as process 1 does not look after them.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ended_children() -> Iterator[tuple[int, int]]:
    """Pid and exit code of each child that ended since the last call."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, _code(status)


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _become(
    command: Sequence[str], env: Mapping[str, str], workdir: str, umask: int, ends: tuple[int, int, int, int]
) -> NoReturn:
    """In the forked process: wait at the gate, then turn into the command. Never returns."""
    gate, fate, stdin, stdout = ends
    try:
        os.setsid()
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        if not os.read(gate, 1):
            os._exit(127)
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.dup2(stdout, 2)
        os.umask(umask)
        os.chdir(workdir)
        os.execvpe(command[0], list(command), dict(env))  # noqa: S606 - running it is what this file is for
    except (OSError, ValueError) as fault:
        where = workdir if isinstance(fault, OSError) and fault.filename == workdir else command[0]
        os.write(fate, f"{where}: {fault.strerror if isinstance(fault, OSError) else fault}".encode()[:4096])
    finally:
        os._exit(127)


def started_at(pid: int) -> str | None:
    """When the process with this pid was started, in a form that only its own repetition equals; None: no such one.

    A pid alone says nothing: it is used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _started_at_by_ps(pid)
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else f"{boot}:{fields[19]}"


def _started_at_by_ps(pid: int) -> str | None:
    """Where there is no /proc."""
    import subprocess

    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return told.stdout.strip() or None
