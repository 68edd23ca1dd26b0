"""How many requests one broker has in flight, and who goes first."""

from __future__ import annotations

import anyio
import pytest

from kernel.intent import Lane
from kernel.window import Window

pytestmark = pytest.mark.anyio


async def all_are_free(window: Window) -> None:
    """Whoever wants the whole window gets it at once."""
    with anyio.fail_after(5):
        async with window.place(Lane.CONTROL, alone=True):
            return


async def test_control_goes_before_messages_when_both_wait() -> None:
    window, order = Window(1), []

    async def take(lane: Lane, name: str) -> None:
        async with window.place(lane):
            order.append(name)

    async with anyio.create_task_group() as tasks, window.place(Lane.MESSAGE):
        tasks.start_soon(take, Lane.MESSAGE, "message")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(take, Lane.CONTROL, "control")
        await anyio.wait_all_tasks_blocked()
    assert order == ["control", "message"]


async def test_a_full_window_admits_nobody() -> None:
    window, running = Window(2), 0

    async def take() -> None:
        nonlocal running
        async with window.place(Lane.CONTROL):
            running += 1
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        assert running == 2
        tasks.cancel_scope.cancel()
    await all_are_free(window)


async def test_what_is_sent_alone_waits_for_all_and_blocks_all() -> None:
    window, order = Window(3), []

    async def alone() -> None:
        async with window.place(Lane.CONTROL, alone=True):
            order.append("alone")
            await anyio.wait_all_tasks_blocked()

    async def other() -> None:
        async with window.place(Lane.MESSAGE):
            order.append("other")

    async with anyio.create_task_group() as tasks, window.place(Lane.MESSAGE):
        tasks.start_soon(alone)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(other)
        await anyio.wait_all_tasks_blocked()
        assert order == []
    assert order == ["alone", "other"]


async def test_who_gives_up_waiting_leaves_no_hole() -> None:
    window = Window(1)
    async with window.place(Lane.CONTROL):
        with anyio.move_on_after(0.01):
            async with window.place(Lane.CONTROL):
                raise AssertionError("the window was full")
    await all_are_free(window)
