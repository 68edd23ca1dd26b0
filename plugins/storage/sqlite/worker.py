"""Threads that own a connection each: one function a transaction, answers handed back to the event loop.

A function runs to its end or not at all, so that a caller who is cancelled while it waits leaves nothing half-done.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio

from kernel import StorageUnavailable
from plugins.storage.sqlite.faults import translated
from plugins.storage.sqlite.tx import SqliteTx

T = TypeVar("T")
WAITING = 20_000
"""Callers that may wait for a thread; the next ones are refused at once."""
BATCH = 256
"""Functions that share one commit at most."""
STEPS = 20_000
"""Virtual-machine steps of SQLite between two looks at a reader's deadline: about a millisecond."""


class Job(Generic[T]):
    """One function, who waits for its answer, and whether somebody still does."""

    __slots__ = ("abandoned", "answer", "fault", "function", "kept", "loop", "unheard", "until", "value")

    def __init__(self, function: Callable[[Any], T], until: float, unheard: Callable[[T], None] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[T] = self.loop.create_future()
        self.function = function
        self.until = until
        self.unheard = unheard
        """Called with an answer that was committed when its caller had left."""
        self.abandoned = False
        self.kept = False
        """It succeeded, and its caller was still there."""
        self.value: T
        self.fault: BaseException | None = None

    def run(self, tx: SqliteTx) -> None:
        """On the worker's thread."""
        with Kept() as kept:
            self.value = self.function(tx)
        self.fault = kept.fault
        self.kept = kept.fault is None and not self.abandoned

    def deliver(self) -> None:
        """On the loop's thread."""
        if self.answer.done():
            if self.kept and self.unheard:
                self.unheard(self.value)
        elif self.fault is None:
            self.answer.set_result(self.value)
        else:
            self.answer.set_exception(self.fault)


def hand_over(jobs: list[Job[Any]]) -> None:
    """From the worker's thread: wake each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[Job[Any]]] = {}
    for job in jobs:
        loops.setdefault(job.loop, []).append(job)
    for loop, theirs in loops.items():
        try:
            loop.call_soon_threadsafe(_deliver, theirs)
        except RuntimeError:
            continue  # the loop is closed: nobody waits any more


def _deliver(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.deliver()


class Kept:
    """Keeps whatever is raised under it, for the caller on the other thread; nothing may end a worker."""

    def __init__(self) -> None:
        self.fault: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> bool:
        self.fault = translated(fault)
        return True


class Worker:
    """A thread with a queue. What it does with the jobs that it takes is its subclass's affair."""

    def __init__(self, name: str, connect: Callable[[], sqlite3.Connection], deadline: float) -> None:
        self._connect = connect
        self._deadline = deadline
        self._queue: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._closing = False
        self._opened: Job[None]
        self.connection: sqlite3.Connection

    async def open(self) -> None:
        """Start the thread and its connection. Raises: whatever kept it from opening."""
        self._opened = Job(lambda _: None, float("inf"))
        self._thread.start()
        await self._opened.answer

    async def call(self, function: Callable[[Any], T], unheard: Callable[[T], None] | None = None) -> T:
        """Run `function` on the thread and give its answer.

        Raises: StorageUnavailable when there is none in time; whatever the function raised.
        """
        job = Job(function, time.monotonic() + self._deadline, unheard)
        self._put(job)
        with anyio.move_on_after(self._deadline):
            try:
                return await job.answer
            finally:
                job.abandoned = True
        raise StorageUnavailable(f"the database gave no answer within {self._deadline:g} s: try again")

    def later(self, function: Callable[[Any], None]) -> None:
        """Run `function` when its turn comes; nobody waits for it."""
        self._queue.put(Job(function, float("inf")))

    def _put(self, job: Job[Any]) -> None:
        if self._closing:
            raise StorageUnavailable("the database was closed: this hub is stopping")
        if self._queue.qsize() >= WAITING:
            raise StorageUnavailable("too many calls wait for the database: try again")
        self._queue.put(job)

    async def close(self) -> None:
        """Do what was asked, then end the thread and close its connection."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        while self._thread.is_alive():
            await anyio.sleep(0.005)

    # -- on the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with Kept() as opening:
            self.connection = self._connect()
        self._opened.fault, self._opened.value = opening.fault, None
        hand_over([self._opened])
        if opening.fault is None:
            while jobs := self._take():
                self.serve([job for job in jobs if not job.abandoned])
            with Kept():
                self.connection.close()

    def _take(self) -> list[Job[Any]]:
        """What waits, at least one; nothing when it is time to end. It never waits for a batch to fill."""
        job = self._queue.get()
        jobs: list[Job[Any]] = []
        while job is not None:
            jobs.append(job)
            if len(jobs) >= BATCH or self._queue.empty():
                return jobs
            job = self._queue.get()
        if jobs:
            self._queue.put(None)
        return jobs

    def serve(self, jobs: list[Job[Any]]) -> None:
        raise NotImplementedError


class Reader(Worker):
    """Reads what is committed, each function from one snapshot; a slow one is interrupted at its deadline."""

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], deadline: float, begin: Callable[..., SqliteTx]
    ) -> None:
        super().__init__("sqlite-reader", connect, deadline)
        self._begin = begin

    def serve(self, jobs: list[Job[Any]]) -> None:
        for job in jobs:
            with Kept() as kept:
                self._read(job)
            job.fault = job.fault or kept.fault
            hand_over([job])

    def _read(self, job: Job[Any]) -> None:
        self.connection.set_progress_handler(lambda: int(job.abandoned or time.monotonic() > job.until), STEPS)
        self.connection.execute("BEGIN")
        job.run(self._begin(self.connection))
        self.connection.set_progress_handler(None, 0)
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")


class Writer(Worker):
    """Writes: functions that wait together share one commit, each in a savepoint, so that one that fails undoes
    itself only. An answer leaves after the commit, or tells that there was none."""

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], deadline: float, begin: Callable[..., SqliteTx]
    ) -> None:
        super().__init__("sqlite-writer", connect, deadline)
        self._begin = begin
        self.committed = 0
        """Functions that changed something and were committed."""
        self.last_batch = 1.0
        """How many of them the last commit held."""

    def serve(self, jobs: list[Job[Any]]) -> None:
        while jobs:
            with Kept() as kept:
                done = self._commit(jobs)
            if kept.fault is not None:
                done = self._undo(jobs, kept.fault)
            hand_over(jobs[:done])
            jobs = jobs[done:]

    def _commit(self, jobs: list[Job[Any]]) -> int:
        """One transaction over the jobs; gives how many of them it came to."""
        self.connection.execute("BEGIN IMMEDIATE")
        changed = 0
        for done, job in enumerate(jobs, start=1):
            before = self.connection.total_changes
            self._member(job)
            if not self.connection.in_transaction:
                return self._undo(jobs[:done], job.fault)
            changed += job.kept and self.connection.total_changes > before
        self.connection.execute("COMMIT")
        if changed:
            self.committed += changed
            self.last_batch = float(changed)
        return len(jobs)

    def _member(self, job: Job[Any]) -> None:
        """Run one function in its savepoint. A fault may take the whole transaction with it: a full disk does."""
        self.connection.execute("SAVEPOINT member")
        job.run(self._begin(self.connection))
        if self.connection.in_transaction:
            if not job.kept:
                self.connection.execute("ROLLBACK TO member")
            self.connection.execute("RELEASE member")

    def _undo(self, jobs: list[Job[Any]], fault: BaseException | None) -> int:
        """Nothing of the batch was written: whoever has no error of their own is told so."""
        with Kept():
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        why = fault.message if isinstance(fault, StorageUnavailable) else "the transaction failed, nothing was done"
        for job in jobs:
            job.kept = False
            if job.fault is None:
                job.fault = StorageUnavailable(why)
        return len(jobs)
