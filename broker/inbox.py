"""What the broker remembers over its own death: dispatch ids with their answers, its agents, the highest epoch.

One small SQLite file, written by one task. What waits while a commit is under way goes out in the next one together.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
import msgspec

from broker.agent import AgentRecord
from broker.answer import Answer

KEPT = 24 * 3600
"""Seconds for which an answer is kept at least."""

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS dispatches (
    id TEXT PRIMARY KEY, running INTEGER NOT NULL, operation BLOB, answer BLOB, keep_until INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS dispatches_running ON dispatches (running) WHERE running = 1;
CREATE TABLE IF NOT EXISTS agents (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS epoch (one INTEGER PRIMARY KEY CHECK (one = 1), highest INTEGER NOT NULL);
INSERT OR IGNORE INTO epoch VALUES (1, 0);
"""


class Unkept(Exception):
    """The inbox could not be written: nothing new may take effect until it can."""


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What must be known of a running id after a crash. No secret is in it."""

    op: str
    agent_id: str
    run_id: str | None = None
    query: dict[str, str] = {}
    config: dict[str, Any] | None = None
    """Of a start: what the agent has from then on, as its task."""
    task: str | None = None


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Agents that are written in the same transaction as an id's beginning or end."""

    kept: tuple[AgentRecord, ...] = ()
    dropped: tuple[str, ...] = ()


class _Step(Generic[T]):
    """One piece of work for the file, and what came of it."""

    def __init__(self, work: Callable[[sqlite3.Connection], T]) -> None:
        self.work = work
        self.over = anyio.Event()
        self.result: T
        self.fault: Exception | None = None


class Inbox:
    """Open it, run `write` in a task, then use it from any other."""

    def __init__(self, path: Path) -> None:
        """Raises: Unkept."""
        try:
            self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        except sqlite3.Error as fault:
            raise Unkept(f"the broker's inbox cannot be opened: {fault}") from fault
        try:
            path.chmod(0o600)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.executescript(_SCHEMA)
            self.epoch: int = self._file.execute("SELECT highest FROM epoch").fetchone()[0]
        except sqlite3.Error as fault:
            self._file.close()
            raise Unkept(f"the broker's inbox cannot be opened: {fault}") from fault
        self._steps: list[_Step[Any]] = []
        self._arrived = anyio.Event()
        self._limiter = anyio.CapacityLimiter(1)

    def close(self) -> None:
        self._file.close()

    async def write(self) -> None:
        """The one task that touches the file."""
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            while self._steps:
                steps, self._steps = self._steps, []
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._commit, steps, limiter=self._limiter)
                for step in steps:
                    step.over.set()

    # -- dispatch ids ------------------------------------------------------------------------------------------------

    async def find(self, dispatch_id: str) -> Answer | None:
        """The answer that this id was given. Raises: Unkept."""
        row = await self._do(
            lambda file: file.execute(
                "SELECT answer FROM dispatches WHERE id = ? AND running = 0", (dispatch_id,)
            ).fetchone()
        )
        return msgspec.json.decode(row[0], type=Answer) if row else None

    async def begin(self, dispatch_id: str, operation: Operation, changes: Changes, remaining: float) -> None:
        """Commit that this id runs, before anything takes effect. Raises: Unkept."""
        values = (dispatch_id, msgspec.json.encode(operation), int(time.time() + max(KEPT, remaining)))

        def work(file: sqlite3.Connection) -> None:
            file.execute("INSERT OR REPLACE INTO dispatches VALUES (?, 1, ?, NULL, ?)", values)
            _change(file, changes)

        await self._do(work)

    async def finish(self, dispatch_id: str, answer: Answer, changes: Changes, remaining: float) -> None:
        """Commit a final answer. Raises: Unkept."""
        until = int(time.time() + max(KEPT, remaining))
        told = msgspec.json.encode(answer)

        def work(file: sqlite3.Connection) -> None:
            file.execute("INSERT OR REPLACE INTO dispatches VALUES (?, 0, NULL, ?, ?)", (dispatch_id, told, until))
            _change(file, changes)

        await self._do(work)

    async def forget(self, dispatch_id: str, changes: Changes) -> None:
        """Nothing took effect: the next attempt runs. Raises: Unkept."""

        def work(file: sqlite3.Connection) -> None:
            file.execute("DELETE FROM dispatches WHERE id = ?", (dispatch_id,))
            _change(file, changes)

        await self._do(work)

    async def running(self) -> list[tuple[str, Operation]]:
        """The ids that ran when the last broker died. Raises: Unkept."""
        rows = await self._do(
            lambda file: file.execute("SELECT id, operation FROM dispatches WHERE running = 1 ORDER BY id").fetchall()
        )
        return [(dispatch_id, msgspec.json.decode(told, type=Operation)) for dispatch_id, told in rows]

    async def prune(self) -> None:
        """Forget answers whose time is over. Raises: Unkept."""
        now = int(time.time())
        await self._do(
            lambda file: file.execute("DELETE FROM dispatches WHERE running = 0 AND keep_until < ?", (now,)).rowcount
        )

    # -- agents and epoch --------------------------------------------------------------------------------------------

    async def agents(self) -> list[AgentRecord]:
        """Raises: Unkept."""
        rows = await self._do(lambda file: file.execute("SELECT record FROM agents ORDER BY id").fetchall())
        return [msgspec.json.decode(told, type=AgentRecord) for (told,) in rows]

    async def change(self, changes: Changes) -> None:
        """Raises: Unkept."""
        await self._do(lambda file: _change(file, changes))

    async def see_epoch(self, epoch: int) -> None:
        """Never goes down. Raises: Unkept."""
        if epoch > self.epoch:
            self.epoch = epoch
            await self._do(lambda file: file.execute("UPDATE epoch SET highest = max(highest, ?)", (epoch,)).rowcount)

    # -- the file ----------------------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        step = _Step(work)
        self._steps.append(step)
        self._arrived.set()
        await step.over.wait()
        if step.fault:
            raise Unkept(f"the broker's inbox cannot be used: {step.fault}") from step.fault
        return step.result

    def _commit(self, steps: Iterable[_Step[Any]]) -> None:
        """All steps in one transaction, or none of them; runs in the worker thread."""
        try:
            self._file.execute("BEGIN IMMEDIATE")
            for step in steps:
                step.result = step.work(self._file)
            self._file.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as fault:  # a number that is too large for a column is no number of ours
            with contextlib.suppress(sqlite3.Error):
                self._file.execute("ROLLBACK")
            for step in steps:
                step.fault = fault


def _change(file: sqlite3.Connection, changes: Changes) -> None:
    file.executemany(
        "INSERT OR REPLACE INTO agents VALUES (?, ?)",
        [(record.id, msgspec.json.encode(record)) for record in changes.kept],
    )
    file.executemany("DELETE FROM agents WHERE id = ?", [(agent_id,) for agent_id in changes.dropped])
