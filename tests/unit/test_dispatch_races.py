"""Tasks of one hub that meet between two awaits: the order is the test's, step by step."""

from __future__ import annotations

import anyio
import pytest

from kernel.clock import SYSTEM
from kernel.lanes import Lanes, Work
from tests.unit.test_dispatch_lanes import a_link, a_work, until

pytestmark = pytest.mark.anyio


# -- a turn that comes at once ---------------------------------------------------------------------------------


class Places:
    """Deliveries as the dispatcher makes them: under the work's patience until it has its place, then for long."""

    def __init__(self) -> None:
        self.place = anyio.Event()
        self.answer = anyio.Event()
        self.told: dict[str, str] = {}

    async def deliver(self, work: Work) -> None:
        name = work.intent.id
        self.told[name] = "sent" if await self._sent(work) else "not sent"

    async def _sent(self, work: Work) -> bool:
        with work.patience(work.until - SYSTEM.monotonic()):
            await self.place.wait()
            if work.set_out():
                await self.answer.wait()
                return True
        return False


async def test_a_turn_that_comes_before_its_wait_began_waits_once() -> None:
    """The end before it and its own entry came in one step of the loop: its turn is there before it stood."""
    places, link = Places(), a_link()
    async with anyio.create_task_group() as tasks:
        lanes = Lanes(tasks, SYSTEM, deliver=places.deliver, put_aside=places.deliver)
        first, second = a_work(link, "1"), a_work(link, "2", seconds=0.3)
        places.place.set()
        lanes.enter(first)
        await until(lambda: first.out)
        places.place = anyio.Event()  # the window is full
        places.answer.set()
        lanes.enter(second)
        await until(first.settled.is_set)
        places.answer = anyio.Event()
        await anyio.sleep(0.05)
        places.place.set()
        await until(lambda: second.out)
        await anyio.sleep(0.4)
        assert places.told == {"1": "sent"}, "it is out, and its deadline ends no more"
        places.answer.set()
    assert places.told == {"1": "sent", "2": "sent"}


async def test_what_is_given_up_before_its_place_is_not_sent_whenever_its_turn_came() -> None:
    places, link = Places(), a_link()
    async with anyio.create_task_group() as tasks:
        lanes = Lanes(tasks, SYSTEM, deliver=places.deliver, put_aside=places.deliver)
        first, second = a_work(link, "1"), a_work(link, "2")
        places.place.set()
        lanes.enter(first)
        await until(lambda: first.out)
        places.place = anyio.Event()
        places.answer.set()
        lanes.enter(second)
        await until(first.settled.is_set)
        second.end_wait()
        await until(second.settled.is_set)
    assert places.told == {"1": "sent", "2": "not sent"}
