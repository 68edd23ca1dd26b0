"""One run of one agent as the broker sees it: through the socket, the lock and the state file of its keeper."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec

from broker.agent import Ended
from broker.keep import SOCKET, STATE
from broker.keeping.child import exit_of, started_at

log = logging.getLogger(__name__)

LOCK = "lock"
_SUN_PATH = 100
"""Bytes that surely fit into the address of a unix socket."""
_REACH = 20.0
"""Seconds in which a keeper that lives lets the broker in."""


class KeeperState(msgspec.Struct, frozen=True, kw_only=True):
    """What the state file says that the broker reads."""

    began: bool
    agent: dict[str, Any] | None = None
    failed: str | None = None
    asked: str | None = None
    exit_code: int | None = msgspec.field(default=None, name="exitCode")
    ended: dict[str, Any] | None = None
    messages: list[str] = []


class KeeperGone(Exception):
    """The keeper went away before it answered; what became of the run stands in its state file."""


class KeeperSilent(Exception):
    """The keeper lives and does not answer: nobody knows yet what became of the question."""


def state_of(run: Path) -> KeeperState | None:
    """None when this run has none: its keeper has not begun, or never was."""
    try:
        return msgspec.json.decode((run / STATE).read_bytes(), type=KeeperState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def is_kept(agent: Path) -> bool:
    """Whether a keeper of this agent lives or is being started: from before its start to its end it holds the lock."""
    try:
        lock = os.open(agent / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def kept_run(agent: Path) -> str:
    """The run for which the lock was taken last."""
    with contextlib.suppress(FileNotFoundError):
        return (agent / LOCK).read_text(encoding="utf-8")
    return ""


def ended_by(state: KeeperState | None) -> Ended:
    """How a run ended whose keeper is gone. What it left running is killed: nobody could reach it any more."""
    if state and state.ended:
        told = state.ended
        return Ended(exit_code=told["exitCode"], asked=told["asked"], tail=told["tail"])
    if state:
        kill_group(state)
    if state and state.exit_code is not None:
        return Ended(exit_code=state.exit_code, asked=state.asked)
    return Ended(exit_code=None, asked=state.asked if state else None, tail="its keeper died, and it was stopped")


def kill_group(state: KeeperState) -> None:
    """Kill the agent and all that it started, if that pid is still this agent's."""
    if state.agent and state.agent["start"] and started_at(state.agent["pid"]) == state.agent["start"]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(state.agent["pid"], signal.SIGKILL)


class Kept:
    """A connection to a keeper that is made again while the keeper lives. `follow` runs in a task of its own."""

    def __init__(self, agent: Path, run_id: str, pid: int | None = None) -> None:
        self.run_id = run_id
        self.over = anyio.Event()
        self.ended: Ended | None = None
        self.status: dict[str, Any] = {}
        self._agent = agent
        self._run = agent / "runs" / run_id
        self._pid = pid
        """Of a keeper that is our child: it has to be reaped."""
        self._stream: anyio.abc.ByteStream | None = None
        self._sending = anyio.Lock()
        self._ready = anyio.Event()
        self._answers: dict[int, tuple[anyio.Event, dict[str, Any]]] = {}
        self._last = 0

    async def follow(self, reported: Callable[[dict[str, Any]], None]) -> None:
        """Tell each status until the run is over, also over broken connections."""
        while await self._connect():
            await self._read(reported)
            self._lose()
        self.ended = self.ended or await anyio.to_thread.run_sync(ended_by, state_of(self._run))
        self.over.set()
        self._lose()
        await self._reap()

    def next_number(self) -> int:
        """The number of a question, for one who may have to take it back."""
        self._last += 1
        return self._last

    async def ask(self, what: str, *, limit: float = _REACH, n: int | None = None, **more: Any) -> dict[str, Any]:
        """One question, one answer. Raises: KeeperGone; KeeperSilent when it lives but does not answer."""
        with anyio.move_on_after(limit):
            await self._ready.wait()
            return await self._ask({"n": n or self.next_number(), "do": what, **more})
        raise KeeperSilent()

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        arrived, answer = self._answers[question["n"]] = anyio.Event(), {}
        try:
            await self._send(msgspec.json.encode(question) + b"\n")
            await arrived.wait()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as gone:
            raise KeeperGone() from gone
        finally:
            self._answers.pop(question["n"], None)
        if not answer:
            raise KeeperGone()
        return answer

    async def _send(self, line: bytes) -> None:
        """The whole line, or the connection is of no use any more. Raises: KeeperGone, KeeperSilent."""
        async with self._sending:
            if self._stream is None:
                raise KeeperGone()
            with anyio.move_on_after(_REACH, shield=True):
                await self._stream.send(line)
                return
            await anyio.aclose_forcefully(self._stream)
            raise KeeperSilent()

    def kill(self) -> None:
        """Kill the agent's group; its keeper writes down how it ended."""
        state = state_of(self._run)
        if state:
            kill_group(state)

    async def _connect(self) -> bool:
        """False when the keeper is gone."""
        while True:
            try:
                if not is_kept(self._agent):
                    return False
                with _short(self._run) as near:
                    self._stream = await anyio.connect_unix(str(near / SOCKET))
            except OSError:
                await anyio.sleep(0.02)
            else:
                self._ready.set()
                return True

    async def _read(self, reported: Callable[[dict[str, Any]], None]) -> None:
        assert self._stream is not None
        rest = b""
        async with self._stream as stream:
            try:
                async for data in stream:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._hear(line, reported)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass

    def _hear(self, line: bytes, reported: Callable[[dict[str, Any]], None]) -> None:
        try:
            told = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as fault:
            log.warning("a line of the keeper in %s cannot be read: %s", self._run, fault)
        else:
            self._take(told, reported)

    def _take(self, told: dict[str, Any], reported: Callable[[dict[str, Any]], None]) -> None:
        if "n" in told:
            if told["n"] in self._answers:
                arrived, answer = self._answers[told["n"]]
                answer.update(told)
                arrived.set()
        elif told["event"] == "ended":
            how = told["ended"]
            self.ended = Ended(exit_code=how["exitCode"], asked=how["asked"], tail=how["tail"])
        elif told["status"] != self.status:
            self.status = told["status"]
            reported(self.status)

    def _lose(self) -> None:
        """Whoever waits for an answer on this connection waits no longer."""
        self._stream = None
        self._ready = anyio.Event()
        if self.over.is_set():
            self._ready.set()
        for arrived, _ in self._answers.values():
            arrived.set()

    async def _reap(self) -> None:
        for _ in range(250):
            if self._pid is None or exit_of(self._pid) is not None:
                return
            await anyio.sleep(0.02)


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """A name of the folder that is short enough for the address of a socket in it."""
    if len(os.fsencode(folder / SOCKET)) < _SUN_PATH:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="pm-") as near:
        link = Path(near) / "run"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link
