"""Callers who wait signal again while nobody took their work, and read its row together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import anyio
import msgspec
import pytest

from kernel.answers import Answers
from kernel.clock import SYSTEM, Instant
from kernel.errors import StorageUnavailable
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.node import NodeId
from kernel.waiters import Seen, Unended, Waiters

pytestmark = pytest.mark.anyio
REKICK = (0.02, 0.02, 0.02)


class Rows:
    """A table of intents that counts the queries."""

    def __init__(self) -> None:
        self.rows: dict[str, Intent] = {}
        self.asked: list[list[str]] = []
        self.slow = 0.0
        self.away = 0

    def put(self, intent_id: str, state: State, **more: Any) -> None:
        self.rows[intent_id] = intent(intent_id, state, **more)

    async def follow(self, ids: Sequence[str]) -> list[tuple[Intent, None]]:
        self.asked.append(sorted(ids))
        await anyio.sleep(self.slow)
        if self.away:
            self.away -= 1
            raise StorageUnavailable
        return [(self.rows[one], None) for one in ids if one in self.rows]


def intent(intent_id: str, state: State, **more: Any) -> Intent:
    made = Intent(
        id=IntentId(intent_id),
        op=Op.STOP,
        lane=Lane.CONTROL,
        state=state,
        broker_id="b",
        agent_id="a",  # type: ignore[arg-type]
        agent_slug="a",
        project_id="p",
        deadline_at=Instant(0),
        route="forward",
        principal="me",
        request_id="r",
        node_id="n",
        created_at=Instant(0),
    )
    return msgspec.structs.replace(made, **more)


class Caller:
    def __init__(self, waiters: Waiters, intent_id: str) -> None:
        self.waiters = waiters
        self.intent_id = IntentId(intent_id)
        self.kicks = 0
        self.seen: Seen | Unended | None = None

    async def wait(self, seconds: float = 30.0, window: float = 30.0) -> None:
        with self.waiters.register(self.intent_id) as waiter:
            waiter.recorded = True
            self.seen = await self.waiters.outcome(waiter, seconds, window, self._kick)

    def _kick(self) -> None:
        self.kicks += 1


def made(rows: Rows, rekick: tuple[float, ...] = REKICK) -> Waiters:
    storage: Any = rows
    return Waiters(storage, SYSTEM, rekick)


async def eventually(true: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not true():
            await anyio.sleep(0.002)


@pytest.mark.parametrize(
    ("state", "kicks"), [(State.PENDING, len(REKICK)), (State.IN_PROGRESS, 0)], ids=["unclaimed", "claimed"]
)
async def test_who_waits_signals_again_only_while_nobody_took_it(state: State, kicks: int) -> None:
    rows = Rows()
    rows.put("i", state)
    caller = Caller(made(rows), "i")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.wait)
        await eventually(lambda: len(rows.asked) == len(REKICK))
        await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    assert caller.kicks == kicks


async def test_end_that_no_signal_told_is_found_by_the_next_look() -> None:
    rows = Rows()
    rows.put("i", State.DONE)
    caller = Caller(made(rows), "i")
    with anyio.fail_after(30):
        await caller.wait()
    assert isinstance(caller.seen, Seen)
    assert caller.kicks == 0


async def test_many_who_look_again_share_queries() -> None:
    rows = Rows()
    rows.slow = 0.1
    for n in range(60):
        rows.put(f"i{n}", State.PENDING)
    waiters = made(rows, (0.01,))
    callers = [Caller(waiters, f"i{n}") for n in range(60)]
    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(caller.wait)
        await eventually(lambda: all(caller.kicks == 1 for caller in callers))
        tasks.cancel_scope.cancel()
    assert {one for asked in rows.asked for one in asked} == {f"i{n}" for n in range(60)}
    assert len(rows.asked) < 20


async def test_failed_look_of_one_caller_costs_its_neighbour_nothing() -> None:
    rows = Rows()
    rows.slow, rows.away = 0.05, 1
    for one in ("i", "j"):
        rows.put(one, State.PENDING)
    waiters = made(rows, (0.01,))
    callers = [Caller(waiters, one) for one in ("i", "j")]
    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(caller.wait)
        await eventually(lambda: len(rows.asked) == 2)
        await eventually(lambda: sum(caller.kicks for caller in callers) == 1)
        tasks.cancel_scope.cancel()


async def test_caller_who_leaves_in_the_middle_of_a_look_leaves_the_others_theirs() -> None:
    rows = Rows()
    rows.slow = 0.1
    for one in ("i", "j"):
        rows.put(one, State.PENDING)
    waiters = made(rows, (0.01,))
    leaves, stays = Caller(waiters, "i"), Caller(waiters, "j")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leaves.wait, 0.05)
        tasks.start_soon(stays.wait)
        await eventually(lambda: stays.kicks == 1)
        tasks.cancel_scope.cancel()
    assert leaves.seen is Unended.WAIT_OVER


async def test_poll_reads_all_who_wait_in_one_query_and_a_signal_only_those_that_it_names() -> None:
    rows = Rows()
    for n in range(5):
        rows.put(f"i{n}", State.IN_PROGRESS)
    waiters = made(rows, ())
    callers = [Caller(waiters, f"i{n}") for n in range(5)]
    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(caller.wait)
        await anyio.sleep(0.02)
        await waiters.read()
        await waiters.read({"i3", "nobody waits for this"})
        assert rows.asked == [["i0", "i1", "i2", "i3", "i4"], ["i3"]]
        rows.put("i3", State.DONE)
        await waiters.read({"i3"})
        await eventually(lambda: isinstance(callers[3].seen, Seen))
        assert [caller.seen for caller in callers if caller is not callers[3]] == [None] * 4
        tasks.cancel_scope.cancel()


async def test_progress_in_the_row_resets_the_window_when_its_signal_was_lost() -> None:
    rows = Rows()
    waiters = made(rows, ())
    caller = Caller(waiters, "i")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.wait, 30.0, 0.4)
        for at in range(1, 8):
            await anyio.sleep(0.1)
            rows.put("i", State.IN_PROGRESS, progress_at=Instant(at))
            await waiters.read()
        assert caller.seen is None
        await eventually(lambda: caller.seen is Unended.SILENT)


# -- before a caller is told that nothing was heard ---------------------------------------------------------------


def answering(rows: Rows, window: float) -> Answers:
    """What waits for callers, of a hub that hears no signal and does not poll."""
    nothing: Any = None

    class Settings:
        http_wait = 30.0
        rolling_window = window

    return Answers(
        storage=cast("Any", rows),
        waiters=made(rows, ()),
        lanes=nothing,
        ends=nothing,
        observer=nothing,
        clock=SYSTEM,
        node_id=NodeId("n"),
        settings=Settings(),
        kick=lambda _: None,
        stop=lambda _: None,
        is_calm=lambda: True,
    )


async def seen_by(answers: Answers, rows: Rows, state: State) -> tuple[Seen | Unended, float]:
    """What its caller is told, and after how many seconds, when the row comes into this state after half a window."""
    rows.put("i", State.IN_PROGRESS, claimed_at=Instant(1))
    window = answers._settings.rolling_window
    started = SYSTEM.monotonic()

    async def later() -> None:
        await anyio.sleep(window / 2)
        rows.put("i", state, claimed_at=Instant(1), progress_at=Instant(2))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            with answers._waiters.register(IntentId("i")) as waiter:
                waiter.recorded = True
                await answers._waiters.read()
                tasks.start_soon(later)
                seen = await answers._seen(rows.rows["i"], waiter, 30.0)
    return seen, SYSTEM.monotonic() - started


async def test_a_progress_that_no_signal_told_is_read_before_the_caller_is_told_of_silence() -> None:
    rows = Rows()
    seen, took = await seen_by(answering(rows, 0.4), rows, State.IN_PROGRESS)
    assert seen is Unended.SILENT
    assert took >= 0.8, "it was silent for one window after its progress was read"


async def test_an_end_that_no_signal_told_is_read_before_the_caller_is_told_of_silence() -> None:
    rows = Rows()
    seen, _ = await seen_by(answering(rows, 0.4), rows, State.DONE)
    assert isinstance(seen, Seen)


async def test_silence_is_told_after_one_window() -> None:
    rows = Rows()
    answers = answering(rows, 0.4)
    rows.put("i", State.IN_PROGRESS, claimed_at=Instant(1))
    with anyio.fail_after(30), answers._waiters.register(IntentId("i")) as waiter:
        waiter.recorded = True
        await answers._waiters.read()
        started = SYSTEM.monotonic()
        assert await answers._seen(rows.rows["i"], waiter, 30.0) is Unended.SILENT
    assert SYSTEM.monotonic() - started < 0.7


async def test_silence_is_told_also_while_the_database_is_away() -> None:
    """What waits in this hub's hands must be stopped whether or not its row can be read."""
    rows = Rows()
    answers = answering(rows, 0.2)
    rows.put("i", State.IN_PROGRESS, claimed_at=Instant(1))
    with anyio.fail_after(30), answers._waiters.register(IntentId("i")) as waiter:
        waiter.recorded = True
        rows.away = 1
        assert await answers._seen(rows.rows["i"], waiter, 30.0) is Unended.SILENT
    assert rows.away == 0, "it was asked"
