"""A latch is set once; whoever waits for it, before or after, goes on."""

from __future__ import annotations

import anyio
import pytest

from kernel.latch import Latch

pytestmark = pytest.mark.anyio


async def test_all_who_wait_go_on_when_it_is_set() -> None:
    latch, passed = Latch(), 0

    async def wait() -> None:
        nonlocal passed
        await latch.wait()
        passed += 1

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert (latch.is_set(), passed) == (False, 0)
            latch.set()
    assert passed == 3


async def test_who_comes_later_does_not_wait() -> None:
    latch = Latch()
    latch.set()
    latch.set()
    with anyio.fail_after(5):
        await latch.wait()
    assert latch.is_set()


async def test_who_gives_up_leaves_it_as_it_was() -> None:
    latch = Latch()
    with anyio.move_on_after(0.01) as scope:
        await latch.wait()
    assert scope.cancelled_caught
    assert not latch.is_set()
