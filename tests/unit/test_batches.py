"""Batches by themselves: one at a time, none waits to fill, and what befalls one asker befalls no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import pytest

from kernel import Invalid, StorageUnavailable
from plugins.storage.postgres.batches import Batches, Broken, Wire
from plugins.storage.postgres.connecting import Connection, Target, connect

pytestmark = pytest.mark.anyio

NODE = "00000000-0000-4000-8000-000000000001"
Numbers = Batches[Any, Any]


def _let_pass(_: Connection, __: Sequence[Any]) -> None:
    """Nothing befalls it."""


class Server:
    """Doubles what it is asked, over a real connection, when the test lets it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.batches: list[list[Any]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.open = anyio.Event()
        self.open.set()
        self.meets: Callable[[Connection, Sequence[Any]], Any] = _let_pass
        self.dialled = 0
        self.wire = self.new_wire(30.0)

    def new_wire(self, deadline: float) -> Wire:
        self.wire = Wire(self.dial, deadline)
        return self.wire

    async def dial(self) -> Connection:
        self.dialled += 1
        return await connect(Target(dsn=self.dsn), "owner", NODE)

    def hold(self) -> None:
        self.open = anyio.Event()

    async def run(self, connection: Connection, questions: Sequence[Any]) -> list[Any]:
        self.batches.append(list(questions))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.open.wait()
            met = self.meets(connection, questions)
            if met is not None:
                await met
            rows = await connection.fetch(
                "SELECT n * 2 FROM unnest($1::int[]) AS asked (n)", [int(q) for q in questions]
            )
            return [row[0] for row in rows]
        finally:
            self.under_way -= 1

    def batches_of(self, *, again: bool = True, most: int = 256) -> Numbers:
        return Batches(self.wire, self.run, again=again, most=most)

    async def asked(self, count: int) -> None:
        with anyio.fail_after(30):
            while len(self.batches) < count:
                await anyio.sleep(0.005)


@pytest.fixture
async def server(postgres_dsn: str) -> AsyncIterator[Server]:
    server = Server(postgres_dsn)
    yield server
    server.wire.close()


class Askers:
    """Many who ask at once, and what each was told."""

    def __init__(self, tasks: anyio.abc.TaskGroup, batches: Numbers) -> None:
        self._tasks = tasks
        self._batches = batches
        self.answers: dict[Any, Any] = {}

    async def ask(self, *questions: Any) -> None:
        for question in questions:
            self._tasks.start_soon(self._one, question)
            await anyio.sleep(0.01)  # it is its turn to ask now

    async def _one(self, question: Any) -> None:
        try:
            self.answers[question] = await self._batches.ask(question)
        except Exception as fault:
            self.answers[question] = fault


# -- in turn -----------------------------------------------------------------------------------------------------


async def test_who_asks_alone_is_sent_at_once(server: Server) -> None:
    batches = server.batches_of()
    for n in range(3):
        assert await batches.ask(n) == 2 * n
    assert server.batches == [[0], [1], [2]]
    assert server.dialled == 1


async def test_what_is_asked_meanwhile_goes_out_together_and_in_order(server: Server) -> None:
    batches = server.batches_of()
    server.hold()
    async with anyio.create_task_group() as tasks:
        askers = Askers(tasks, batches)
        await askers.ask(1, *range(2, 30))
        server.open.set()
    assert server.batches == [[1], list(range(2, 30))]
    assert server.most_under_way == 1
    assert askers.answers == {n: 2 * n for n in range(1, 30)}
    assert batches.last == 28.0


async def test_a_batch_holds_no_more_than_it_may(server: Server) -> None:
    batches = server.batches_of(most=2)
    server.hold()
    async with anyio.create_task_group() as tasks:
        await Askers(tasks, batches).ask(1, 2, 3, 4, 5, 6)
        server.open.set()
    assert server.batches == [[1, 2], [3, 4], [5, 6]] or server.batches == [[1], [2, 3], [4, 5], [6]]


async def test_two_kinds_of_questions_take_turns_on_one_connection(server: Server) -> None:
    first, second = server.batches_of(), server.batches_of()
    async with anyio.create_task_group() as tasks:
        ones, others = Askers(tasks, first), Askers(tasks, second)
        for n in range(20):
            await ones.ask(n)
            await others.ask(n + 100)
    assert server.dialled == server.most_under_way == 1
    assert len(ones.answers) == len(others.answers) == 20


# -- one bad question --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "told"), [(2**40, Invalid), ("no number", ValueError), (None, TypeError), ([], TypeError)]
)
async def test_a_bad_question_fails_its_own_asker_only(server: Server, bad: Any, told: type[Exception]) -> None:
    """Whether the server finds it bad, or our own code before it."""
    key = str(bad)
    batches = server.batches_of()
    server.hold()
    async with anyio.create_task_group() as tasks:
        askers = Askers(tasks, batches)
        await askers.ask(1, 2)
        tasks.start_soon(_told, batches, bad, askers.answers, key)
        await anyio.sleep(0.01)
        await askers.ask(3)
        server.open.set()
    assert isinstance(askers.answers.pop(key), told)
    assert askers.answers == {1: 2, 2: 4, 3: 6}
    assert server.dialled == 1, "the connection is as good as before"


async def _told(batches: Numbers, question: Any, answers: dict[Any, Any], key: str) -> None:
    try:
        answers[key] = await batches.ask(question)
    except Exception as fault:
        answers[key] = fault


async def test_a_bad_question_of_the_one_who_sends_fails_nobody_else(server: Server) -> None:
    batches = server.batches_of()
    server.hold()
    async with anyio.create_task_group() as tasks:
        askers = Askers(tasks, batches)
        await askers.ask(1, "no number", 2)
        server.open.set()
    assert isinstance(askers.answers.pop("no number"), ValueError)
    assert askers.answers == {1: 2, 2: 4}
    assert await batches.ask(5) == 10


# -- broken connections ------------------------------------------------------------------------------------------


def breaking(times: int) -> Callable[[Connection, Sequence[Any]], Any]:
    left = [times]

    def meet(connection: Connection, questions: Sequence[Any]) -> None:
        if left[0]:
            left[0] -= 1
            connection.terminate()

    return meet


async def test_what_may_be_repeated_is_asked_again_on_a_new_connection(server: Server) -> None:
    batches = server.batches_of(again=True)
    server.meets = breaking(2)
    assert await batches.ask(3) == 6
    assert (server.dialled, server.wire.breaks) == (3, 2)


async def test_what_may_not_be_repeated_is_told_as_unknown(server: Server) -> None:
    batches = server.batches_of(again=False)
    server.meets = breaking(1)
    with pytest.raises(Broken, match="not known"):
        await batches.ask(3)
    assert await batches.ask(3) == 6
    assert server.wire.breaks == 1


async def test_a_connection_that_the_server_ends_costs_nobody_anything(server: Server, postgres_dsn: str) -> None:
    batches = server.batches_of()
    killer = await connect(Target(dsn=postgres_dsn), "killer", NODE)

    async def end(connection: Connection) -> None:
        await killer.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())

    server.meets = lambda connection, _: end(connection) if server.dialled == 1 else None
    try:
        assert await batches.ask(4) == 8
    finally:
        killer.terminate()
    assert (server.dialled, server.wire.breaks) == (2, 1)


async def _broken(connection: Connection, _: Sequence[Any]) -> None:
    connection.terminate()


async def test_a_connection_that_broke_while_nobody_asked_counts_as_broken(server: Server) -> None:
    """A crash of the server undoes what was committed before: who remembers must hear of it."""
    batches = server.batches_of()
    assert await batches.ask(1) == 2
    await server.wire.ask(_broken, [])
    assert await batches.ask(2) == 4
    assert (server.dialled, server.wire.breaks) == (2, 1)


# -- time --------------------------------------------------------------------------------------------------------


async def test_a_batch_that_stands_still_is_given_up_with_all_who_wait_for_it(server: Server) -> None:
    server.new_wire(0.5)
    batches = server.batches_of()
    server.hold()
    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        askers = Askers(tasks, batches)
        await askers.ask(1, 2, 3)
    assert all(isinstance(one, StorageUnavailable) for one in askers.answers.values())
    assert time.monotonic() - began < 15, "nobody waits for several deadlines"
    server.open.set()
    assert await batches.ask(4) == 8


async def test_many_who_wait_in_front_of_a_frozen_server_wait_no_longer_than_one(server: Server) -> None:
    server.new_wire(1.0)
    batches = server.batches_of(most=2)
    server.hold()
    async with anyio.create_task_group() as tasks:
        askers = Askers(tasks, batches)
        began = time.monotonic()
        for n in range(40):
            tasks.start_soon(askers._one, n)
    assert time.monotonic() - began < 10, "twenty batches in line are not twenty deadlines"
    assert all(isinstance(one, StorageUnavailable) for one in askers.answers.values())
    assert len(server.batches) < 10


async def test_who_is_cancelled_hears_the_answer_first(server: Server) -> None:
    batches = server.batches_of()
    server.hold()
    heard: list[int | None] = []

    async def ask(scope: anyio.CancelScope) -> None:
        with scope:
            heard.append(await batches.ask(7))

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        tasks.start_soon(ask, scope)
        await server.asked(1)
        scope.cancel()
        await anyio.sleep(0.05)
        assert heard == []
        server.open.set()
    assert heard == [14]


# -- askers that are ended by the event loop -----------------------------------------------------------------------


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_sends_and_is_ended_harms_nobody_else(server: Server) -> None:
    batches = server.batches_of(again=True)
    server.hold()
    first = asyncio.create_task(batches.ask(1))
    await server.asked(1)
    others = [asyncio.create_task(batches.ask(n)) for n in (2, 3)]
    await anyio.sleep(0.01)
    await ended(first)
    await server.asked(2)
    fourth = asyncio.create_task(batches.ask(4))
    await anyio.sleep(0.01)
    await ended(others[0])  # it sent 2 and 3
    server.open.set()
    with anyio.fail_after(30):
        assert [await others[1], await fourth] == [6, 8]


async def test_of_what_may_not_be_repeated_nobody_knows_when_its_sender_is_ended(server: Server) -> None:
    batches = server.batches_of(again=False)
    server.hold()
    first = asyncio.create_task(batches.ask(1))
    await server.asked(1)
    others = [asyncio.create_task(batches.ask(n)) for n in (2, 3)]
    await anyio.sleep(0.01)
    await ended(first)
    await server.asked(2)
    await ended(others[0])
    with anyio.fail_after(30), pytest.raises(StorageUnavailable, match="not known"):
        await others[1]
    server.open.set()
    assert await batches.ask(5) == 10


async def test_who_is_ended_in_line_is_not_waited_for(server: Server) -> None:
    """Also when it was about to send the next batch."""
    batches = server.batches_of()
    server.hold()
    first = asyncio.create_task(batches.ask(1))
    await server.asked(1)
    second, third = (asyncio.create_task(batches.ask(n)) for n in (2, 3))
    await anyio.sleep(0.01)
    server.open.set()
    with anyio.fail_after(30):
        await first
        await ended(second)
        assert await third == 6
        assert await batches.ask(4) == 8


async def test_who_is_ended_at_the_moment_of_its_turn_hands_it_on(server: Server) -> None:
    batches = server.batches_of()
    server.hold()
    first = asyncio.create_task(batches.ask(1))
    await server.asked(1)
    second, third = (asyncio.create_task(batches.ask(n)) for n in (2, 3))
    await anyio.sleep(0.01)
    first.add_done_callback(lambda _: second.cancel())
    server.open.set()
    with anyio.fail_after(30):
        await first
        assert await third == 6
        assert await batches.ask(4) == 8


async def test_a_closed_connection_is_not_opened_again(server: Server) -> None:
    batches = server.batches_of()
    assert await batches.ask(1) == 2
    server.wire.close()
    with pytest.raises(StorageUnavailable, match="closed"):
        await batches.ask(2)
    assert server.dialled == 1
