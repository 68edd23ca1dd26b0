"""Lets what is asked at the same time go to the server together: one batch at a time, and none waits to fill."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio
import asyncpg
import msgspec

from kernel import StorageUnavailable
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.faults import FAULTS, busy, misled, repeatable, translated

Q = TypeVar("Q")
A = TypeVar("A")
MOST = 256
"""Questions that one statement answers at most."""
TRIES = 5
PAUSE = 0.005
"""Seconds between two tries of statements that met others, times the number of tries."""
LEAST = 0.2
"""Of the deadline: so much has a batch at least, however long its questions waited."""
OURS = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, msgspec.MsgspecError)
"""What our own code may say of a question, or of a row that it cannot read: it is the asker's, not its neighbours'."""
LATE = "the database did not answer within server.database_deadline"
NOT_SENT = f"{LATE}: nothing was done"
GIVEN_UP = "the call that sent this one along was ended: whether it was done is not known"
CLOSED = "the storage is closed: nothing was done"


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
        self._closed = False
        self.breaks = 0
        """How often it broke."""

    async def ask(self, run: Callable[[Connection, Sequence[Q]], Awaitable[A]], questions: Sequence[Q]) -> A:
        """What `run(connection, questions)` gives, when it is its turn.

        Raises: StorageUnavailable when no server is to be had; Broken when this one went away under a statement.
        """
        async with self._turn:
            connection = await self._open()
            try:
                return await run(connection, questions)
            except (*FAULTS, *OURS) as fault:
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

    async def _open(self) -> Connection:
        """One that broke while nothing was asked broke all the same: a crash of the server undoes what came before."""
        if self._closed:
            raise StorageUnavailable(CLOSED)
        if self._connection is not None and self._connection.is_closed():
            self._drop()
        if self._connection is None:
            self._connection = await self._connect()
        return self._connection

    def _drop(self) -> None:
        self.breaks += 1
        if self._connection:
            self._connection.terminate()
        self._connection = None

    def close(self) -> None:
        """For good."""
        self._closed = True
        if self._connection:
            self._connection.terminate()
            self._connection = None


class _Asked(Generic[Q, A]):
    """One question. Its asker is called when it is answered, or when it is to send the next batch."""

    __slots__ = ("answer", "answered", "called", "fault", "question", "turn", "until")

    def __init__(self, question: Q, until: float) -> None:
        self.question = question
        self.until = until
        self.called = False
        self.turn: anyio.Event | None = None
        """Of one who waits to be called."""
        self.answered = False
        self.answer: A | None = None
        self.fault: BaseException | None = None

    def call(self) -> None:
        self.called = True
        if self.turn is not None:
            self.turn.set()

    async def wait(self, until: float = float("inf")) -> None:
        """Until it is called, or its time is over; whoever cancels."""
        if not self.called:
            self.turn = anyio.Event()
            with anyio.CancelScope(deadline=until, shield=True):
                await self.turn.wait()

    def end(self, fault: BaseException | None = None) -> None:
        if busy(fault):
            self.answer = None
        else:
            self.fault = fault
        self.answered = True
        self.call()


class Batches(Generic[Q, A]):
    """Whoever asks while nothing is under way sends at once; what is asked meanwhile goes out in the next batch.

    `run(connection, questions)` is one statement that answers all of them, in their order, or fails for all of them:
    then each is asked alone, so that a bad one fails its own asker only. One that waits for a lock too long is answered
    None: who may wait is to ask anew, elsewhere.

    A caller that is cancelled waits for the answer all the same, so that nothing is done of which nobody heard. No wait
    is endless: what is not sent in its time is given up, and a batch ends with its oldest question's time.
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

    async def ask(self, question: Q) -> A | None:
        """Raises: StorageUnavailable, also when nobody can tell whether it was done; what the database refuses."""
        asked: _Asked[Q, A] = _Asked(question, anyio.current_time() + self._wire.deadline)
        self._waiting.append(asked)
        try:
            await self._see_to(asked)
        except BaseException:  # the event loop itself ends this task: nobody else may wait for it
            self._leave(asked)
            raise
        if asked.fault is not None:
            raise asked.fault
        return asked.answer

    # -- waiting, and taking turns: each wait is shielded, and has its end ---------------------------------------

    async def _see_to(self, asked: _Asked[Q, A]) -> None:
        if self._sending:
            await asked.wait(asked.until)
            if not asked.called:
                await self._outwait(asked)
        if not asked.answered:
            await self._send(asked)

    async def _outwait(self, asked: _Asked[Q, A]) -> None:
        """Its time is over: it is given up, unless it is being asked right now."""
        if asked in self._waiting:
            self._waiting.remove(asked)
            asked.end(StorageUnavailable(NOT_SENT))
        await asked.wait()

    def _leave(self, asked: _Asked[Q, A]) -> None:
        """Its asker is gone. If it was to send the next batch, the one behind it does."""
        if asked in self._waiting:
            self._waiting.remove(asked)
            if asked.called:
                self._pass_on()

    def _pass_on(self) -> None:
        self._sending = bool(self._waiting)
        if self._waiting:
            self._waiting[0].call()

    # -- sending -------------------------------------------------------------------------------------------------

    async def _send(self, leader: _Asked[Q, A]) -> None:
        """The batch of the moment; then the first who waits sends the next."""
        self._sending = True
        batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        try:
            await self._answer(batch)
        finally:
            self._let_down([asked for asked in batch if not asked.answered and asked is not leader])
            self._pass_on()

    def _let_down(self, left: list[_Asked[Q, A]]) -> None:
        """Their batch was ended from outside: they are asked again, if that is the same as asking once."""
        for asked in reversed(left):
            if self._again and not asked.called:
                self._waiting.appendleft(asked)
            else:
                asked.end(Broken(GIVEN_UP))

    async def _answer(self, batch: list[_Asked[Q, A]]) -> None:
        now = anyio.current_time()
        until = max(min(asked.until for asked in batch), now + LEAST * self._wire.deadline)
        fault = await self._try(batch, until)
        if fault is None:
            self.last = float(len(batch))
        if len(batch) > 1 and fault is not None and not isinstance(fault, StorageUnavailable):
            for asked in batch:
                asked.end(await self._try([asked], until))
        else:
            for asked in batch:
                asked.end(fault)

    async def _try(self, batch: list[_Asked[Q, A]], until: float) -> BaseException | None:
        """What went wrong; None when all are answered."""
        questions = [asked.question for asked in batch]
        for number in range(1, TRIES + 1):
            try:
                with anyio.CancelScope(deadline=until, shield=True) as scope:
                    answers = await self._wire.ask(self._run, questions)
                if scope.cancelled_caught:
                    return StorageUnavailable(LATE)
            except Broken as fault:
                if not self._again or number == TRIES:
                    return fault
            except TimeoutError:
                return StorageUnavailable(LATE)
            except StorageUnavailable as fault:
                return fault
            except FAULTS as fault:
                if busy(fault):
                    return fault
                if not repeatable(fault) or number == TRIES:
                    return translated(fault)
            except OURS as fault:
                return fault
            else:
                for asked, answer in zip(batch, answers, strict=True):
                    asked.answer = answer
                self.answered += sum(answer is not None for answer in answers)
                return None
            with anyio.CancelScope(shield=True):
                await anyio.sleep(PAUSE * number)
        raise AssertionError("the last try returns")
