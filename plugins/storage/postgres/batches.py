"""Lets what is asked at the same time go to the server together: one batch at a time, and none waits to fill."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
import asyncpg

from kernel import StorageUnavailable
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.faults import FAULTS, misled, repeatable, translated

Q = TypeVar("Q")
A = TypeVar("A")
MOST = 256
"""Questions that one statement answers at most."""
TRIES = 5
PAUSE = 0.005
"""Seconds between two tries of statements that met others, times the number of tries."""


class Broken(StorageUnavailable):
    """The connection broke under a statement: whether it was done is not known."""


class Wire:
    """One connection that belongs to one kind of statement: opened when it is first used, and anew after it broke.

    Its statements are transactions of their own: one way there and back.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], deadline: float) -> None:
        self._connect = connect
        self.deadline = deadline
        self._connection: Connection | None = None
        self._turn = anyio.Lock(fast_acquire=True)
        self.breaks = 0
        """How often it broke."""

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Connection]:
        """Raises: StorageUnavailable when no server is to be had; Broken when this one went away under a statement."""
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            connection = self._connection
            try:
                yield connection
            except FAULTS as fault:
                if misled(fault):
                    self._drop()
                    raise
                if connection.is_closed() or isinstance(fault, TimeoutError | OSError | asyncpg.InterfaceError):
                    self._drop()
                    raise Broken("the database broke off: whether it was done is not known") from fault
                raise
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        self.breaks += 1
        if self._connection:
            self._connection.terminate()
        self._connection = None

    def close(self) -> None:
        if self._connection:
            self._connection.terminate()
            self._connection = None


class _Asked(Generic[Q, A]):
    """One question of a batch; `turn` is set when it is answered, or when its asker is to send the next batch."""

    __slots__ = ("answer", "answered", "fault", "question", "turn")

    def __init__(self, question: Q) -> None:
        self.question = question
        self.turn: anyio.Event | None = None
        self.answered = False
        self.answer: A
        self.fault: BaseException | None = None


class Batches(Generic[Q, A]):
    """Whoever asks while nothing is under way sends at once; what is asked meanwhile goes out in the next batch.

    `run(connection, questions)` is one statement that answers all of them, in their order, or fails for all of them:
    then each is asked alone, so that a bad one fails its own asker only. A caller that is cancelled waits for the
    answer all the same, so that nothing is done of which nobody heard.
    """

    def __init__(
        self,
        wire: Wire,
        run: Callable[[Connection, Sequence[Q]], Awaitable[Sequence[A]]],
        *,
        again: bool,
        most: int = MOST,
    ) -> None:
        """`again`: a statement whose answer was lost may be repeated, and answers the same. `most`: questions that
        one statement answers."""
        self._wire = wire
        self._run = run
        self._again = again
        self._most = most
        self._waiting: deque[_Asked[Q, A]] = deque()
        self._sending = False
        self.last = 1.0
        """How many questions the last batch held."""
        self.answered = 0
        """Questions that were answered by something, since the start."""

    async def ask(self, question: Q) -> A:
        """Raises: StorageUnavailable, also when nobody can tell whether it was done; what the database refuses."""
        asked: _Asked[Q, A] = _Asked(question)
        self._waiting.append(asked)
        if self._sending:
            asked.turn = anyio.Event()
            with anyio.CancelScope(shield=True):
                await asked.turn.wait()
        if not asked.answered:
            await self._send()
        if asked.fault is not None:
            raise asked.fault
        return asked.answer

    async def _send(self) -> None:
        """The batch of the moment; then the first who waits sends the next."""
        self._sending = True
        batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        try:
            await self._answer(batch)
        finally:
            for asked in batch:
                asked.answered = True
                if asked.turn:
                    asked.turn.set()
            self._sending = bool(self._waiting)
            if self._waiting and (turn := self._waiting[0].turn):
                turn.set()

    async def _answer(self, batch: list[_Asked[Q, A]]) -> None:
        fault = await self._try(batch)
        if fault is None:
            self.last = float(len(batch))
        elif len(batch) > 1 and not isinstance(fault, StorageUnavailable):
            for asked in batch:
                asked.fault = await self._try([asked])
        else:
            for asked in batch:
                asked.fault = fault

    async def _try(self, batch: list[_Asked[Q, A]]) -> BaseException | None:
        """What went wrong; None when all are answered."""
        for number in range(1, TRIES + 1):
            try:
                with anyio.fail_after(self._wire.deadline, shield=True):
                    async with self._wire.held() as connection:
                        answers = await self._run(connection, [asked.question for asked in batch])
            except Broken as fault:
                if not self._again or number == TRIES:
                    return fault
            except TimeoutError:
                return StorageUnavailable("the database did not answer within server.database_deadline")
            except StorageUnavailable as fault:
                return fault
            except FAULTS as fault:
                if not repeatable(fault) or number == TRIES:
                    return translated(fault)
            else:
                for asked, answer in zip(batch, answers, strict=True):
                    asked.answer = answer
                self.answered += sum(answer is not None for answer in answers)
                return None
            with anyio.CancelScope(shield=True):
                await anyio.sleep(PAUSE * number)
        raise AssertionError("the last try returns")
