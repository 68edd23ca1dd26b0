"""The built-in runtime: an agent is a command in its own working directory, under a keeper that outlives the broker."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from broker.agent import Ended
from broker.answer import Refusal
from broker.keeping.agentlog import last_lines
from broker.runtimes import Delivered, Executed, Launch, Listener, Run
from broker.runtimes.config import MOST_GRACE, ProcessConfig, read_config
from broker.runtimes.kept import LOCK, KeeperGone, KeeperSilent, Kept, ended_by, is_kept, kept_run, state_of
from broker.runtimes.spawn import LOCK_PLACE, locked, start_keeper
from broker.settings import BrokerSettings

log = logging.getLogger(__name__)

_BEGIN = 30.0
"""Seconds that a keeper found alive has to begin."""
_LONGEST_STOP = MOST_GRACE + 60.0
_MESSAGE_COMMAND = 70.0
_EXEC_MARGIN = 20.0
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class ProcessRuntime:
    """Agents as processes of this machine. `start`, `stop` and `message` of one agent never overlap."""

    def __init__(self, settings: BrokerSettings, listener: Listener, tasks: anyio.abc.TaskGroup) -> None:
        self._settings = settings
        self._root = settings.dir.absolute() / "agents"
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._listener = listener
        self._tasks = tasks
        self._kept: dict[str, Kept] = {}

    def faults(self, config: dict[str, Any]) -> dict[str, str]:
        read, faults = read_config(config)
        if read and read.workdir and not (Path(read.workdir).is_absolute() and Path(read.workdir).is_dir()):
            return {"workdir": f"is no folder of the broker's machine: {read.workdir}; give an absolute path"}
        return faults

    def required(self, config: dict[str, Any]) -> list[str]:
        read, _ = read_config(config)
        return read.required_env if read else []

    def runs(self, agent_id: str) -> bool:
        kept = self._kept.get(agent_id)
        return kept is not None and not kept.over.is_set()

    # -- start and stop ----------------------------------------------------------------------------------------------

    async def start(self, launch: Launch) -> Run:
        read, faults = read_config(launch.config)
        if read is None:
            raise Refusal(
                422, "invalid_config", "the agent cannot be started as configured", details={"fields": faults}
            )
        pid, failed = await anyio.to_thread.run_sync(self._spawn, launch, read)
        if failed is not None:
            raise Refusal(422, "start_failed", f"the agent's command could not be started: {failed}")
        kept = self._follow(launch.agent_id, launch.run_id, pid)
        return Run(run_id=launch.run_id, ended=kept.ended)

    def _follow(self, agent_id: str, run_id: str, pid: int | None = None) -> Kept:
        kept = self._kept[agent_id] = Kept(self._home(agent_id), _safe(run_id), pid)
        self._tasks.start_soon(self._watch, agent_id, run_id, kept)
        return kept

    async def _watch(self, agent_id: str, run_id: str, kept: Kept) -> None:
        """Tell what the run reports until it is over."""
        await kept.follow(lambda status: self._listener.reported(agent_id, run_id, status))
        if kept.ended and self._kept.get(agent_id) is kept:
            self._listener.ended(agent_id, run_id, kept.ended)

    def _spawn(self, launch: Launch, read: ProcessConfig) -> tuple[int, str | None]:
        """In a thread: take the lock, start a keeper that inherits it, hear how that went."""
        home = self._home(launch.agent_id)
        run = home / "runs" / _safe(launch.run_id)
        (home / "work").mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = locked(home / LOCK, run.name)
        try:
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir(mode=0o700, parents=True)
            orders = {
                "run": launch.run_id,
                "runDir": str(run),
                "lock": LOCK_PLACE,
                "log": str(home / "log"),
                "logBytes": self._settings.log_bytes,
                "logFiles": self._settings.log_files,
                "command": read.command,
                "env": launch.environment,
                "workdir": read.workdir or str(home / "work"),
                "stopSignal": read.stop_signal,
                "stopGrace": read.stop_grace,
                "messageCommand": read.message_command,
            }
            pid, failed = start_keeper(orders, lock, run)
            if failed is None:
                _remove_others(run)
            return pid, failed
        finally:
            os.close(lock)

    async def stop(self, agent_id: str, asked: str) -> Ended | None:
        kept = self._kept.get(agent_id)
        if kept is None or kept.over.is_set():
            return None
        with anyio.move_on_after(_LONGEST_STOP):
            while not kept.over.is_set():
                try:
                    await kept.ask("stop", asked=asked)
                    await kept.over.wait()
                except KeeperGone:
                    await anyio.sleep(0.02)
                except KeeperSilent:
                    break
        if not kept.over.is_set():
            raise Refusal(503, "keeper_silent", "the agent's keeper does not answer", retry_after=5)
        return kept.ended

    async def find(self, agent_id: str, run_id: str) -> Run | None:
        """A lock that is held names the run for which it was taken: that run may still be about to begin."""
        home = self._home(agent_id)
        known = self._kept.get(agent_id)
        if known and known.run_id == _safe(run_id):
            return Run(run_id=run_id, ended=known.ended, status=known.status)
        until = anyio.current_time() + _BEGIN
        while (alive := await anyio.to_thread.run_sync(is_kept, home)) and kept_run(home) == _safe(run_id):
            if anyio.current_time() > until:
                raise Refusal(503, "keeper_silent", "the agent's keeper has not begun", retry_after=5)
            state = state_of(home / "runs" / _safe(run_id))
            if state and state.began:
                self._follow(agent_id, run_id)
                return Run(run_id=run_id)
            await anyio.sleep(0.02)
        state = state_of(home / "runs" / _safe(run_id))
        if alive or state is None or not state.began:
            return None
        return Run(run_id=run_id, ended=ended_by(state))

    # -- messages, side commands, log --------------------------------------------------------------------------------

    async def message(self, agent_id: str, message_id: str, line: str | None, cancelled: anyio.Event) -> Delivered:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ask_when, cancelled, agent_id, "withdraw", {"id": message_id})
            delivered = await self._message(agent_id, message_id, line)
            tasks.cancel_scope.cancel()
        return delivered

    async def _message(self, agent_id: str, message_id: str, line: str | None) -> Delivered:
        kept = self._kept.get(agent_id)
        while kept and not kept.over.is_set():
            try:
                wait = self._settings.message_wait
                told = await kept.ask("message", limit=wait + _MESSAGE_COMMAND, id=message_id, line=line, wait=wait)
            except KeeperGone:
                await anyio.sleep(0.02)
            except KeeperSilent:
                return Delivered(result="silent")
            else:
                output = told.get("output", "")[-4096:]
                return Delivered(result=told["result"], exit_code=told.get("exitCode"), output=output)
        return Delivered(result="delivered" if self._was_delivered(agent_id, message_id) else "ended")

    def _was_delivered(self, agent_id: str, message_id: str) -> bool:
        """Whether a run that is over remembers the message."""
        runs = self._home(agent_id) / "runs"
        states = [state_of(run) for run in runs.iterdir()] if runs.is_dir() else []
        return any(message_id in state.messages for state in states if state)

    async def _ask_when(self, cancelled: anyio.Event, agent_id: str, what: str, of: dict[str, Any]) -> None:
        """Take back what was asked, if that still can be."""
        await cancelled.wait()
        kept = self._kept.get(agent_id)
        if kept:
            with contextlib.suppress(KeeperGone, KeeperSilent):
                await kept.ask(what, **of)

    async def exec(self, agent_id: str, command: list[str], timeout: float, cancelled: anyio.Event) -> Executed:
        kept = self._kept.get(agent_id)
        if kept is None or kept.over.is_set():
            raise Refusal(409, "invalid_state", "the agent does not run: start it first")
        n = kept.next_number()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ask_when, cancelled, agent_id, "abort", {"of": n})
            try:
                told = await kept.ask("exec", n=n, command=command, timeout=timeout, limit=timeout + _EXEC_MARGIN)
            except (KeeperGone, KeeperSilent):
                told = {}
            tasks.cancel_scope.cancel()
        if not told:
            return Executed(result="lost")
        return Executed(
            result="cancelled" if cancelled.is_set() and told["exitCode"] == 128 + signal.SIGKILL else "done",
            exit_code=told["exitCode"],
            output=told["output"],
            timed_out=told.get("timedOut", False),
            truncated=told.get("truncated", False),
        )

    async def log(self, agent_id: str, lines: int, most: int) -> bytes:
        path = self._home(agent_id) / "log"
        return await anyio.to_thread.run_sync(last_lines, path, self._settings.log_files, lines, most)

    async def remove(self, agent_id: str, *, files: bool) -> None:
        self._kept.pop(agent_id, None)
        await anyio.to_thread.run_sync(_remove, self._home(agent_id), files)

    async def stop_strangers(self, known: set[str]) -> None:
        """Stop what runs here though no record of it is left: nobody could ever reach it."""
        names = {_safe(agent_id) for agent_id in known}
        for home in self._root.iterdir():
            if home.name not in names and await anyio.to_thread.run_sync(is_kept, home):
                log.error("an agent without a record runs in %s: it is stopped", home)
                self._follow(home.name, kept_run(home))
                await self.stop(home.name, "delete")

    async def stop_all(self, limit: float) -> None:
        """Stop every agent; what has not ended after `limit` seconds is killed."""
        running = [agent_id for agent_id in self._kept if self.runs(agent_id)]
        with anyio.move_on_after(limit):
            async with anyio.create_task_group() as tasks:
                for agent_id in running:
                    tasks.start_soon(self._stop_quietly, agent_id)
        for agent_id in running:
            kept = self._kept[agent_id]
            if not kept.over.is_set():
                await anyio.to_thread.run_sync(kept.kill)

    async def _stop_quietly(self, agent_id: str) -> None:
        with contextlib.suppress(Refusal):
            await self.stop(agent_id, "stop")

    def _home(self, agent_id: str) -> Path:
        return self._root / _safe(agent_id)


def _safe(name: str) -> str:
    """The name of a folder for an id, whatever the id is made of."""
    return name if _NAME.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()


def _remove_others(run: Path) -> None:
    """Only the last run's state is needed."""
    for other in run.parent.iterdir():
        if other != run:
            shutil.rmtree(other, ignore_errors=True)


def _remove(home: Path, files: bool) -> None:
    for path in home.iterdir() if home.is_dir() else ():
        if path.name == "work":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if files or (home.is_dir() and not any((home / "work").iterdir() if (home / "work").is_dir() else ())):
        shutil.rmtree(home, ignore_errors=True)
