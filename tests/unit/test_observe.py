"""Exporters are told in order, and what they cannot take is counted, the least of it first."""

from __future__ import annotations

import anyio
import pytest

from kernel.clock import Instant
from kernel.intent import IntentId, Op, State
from kernel.observe import MOST_MEASURES, MOST_PENDING, Observer
from kernel.transition import Transition

pytestmark = pytest.mark.anyio


class Heard:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def tell(self, *arguments: object) -> None:
        self.said.append(arguments)


def a_step(n: int) -> Transition:
    return Transition(
        intent_id=IntentId("i"), n=n, op=Op.STOP, at=Instant(0), from_state=State.PENDING, to_state=State.IN_PROGRESS,
        reason="claimed", node_id="n", seconds=0.0,
    )  # fmt: skip


async def test_all_is_told_in_order_by_a_task_of_its_own() -> None:
    heard = Heard()
    observer = Observer(heard, heard, heard)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(observer.run)
        observer.stage("claim", 0.1)
        observer.tell([a_step(1), a_step(2)])
        observer.request("/x", "GET", 200, 0.2)
        assert heard.said == [], "nobody is told on the way"
        with anyio.fail_after(5):
            while len(heard.said) < 4:
                await anyio.sleep(0.001)
        assert heard.said == [("claim", 0.1), (a_step(1),), (a_step(2),), ("/x", "GET", 200, 0.2)]
        observer.stage("claim", 0.3)
        with anyio.fail_after(5):
            while len(heard.said) < 5:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert heard.said[-1] == ("claim", 0.3), "nothing has to come after it"


def test_a_transition_is_kept_long_after_measures_are_dropped() -> None:
    heard = Heard()
    observer = Observer(heard, heard, heard)
    for _ in range(MOST_MEASURES + 5):
        observer.stage("claim", 0.1)
    observer.tell([a_step(1)])
    assert observer.dropped == 5
    observer.tell([a_step(2)] * MOST_PENDING)
    assert observer.dropped == 5 + MOST_MEASURES + 1
    observer.flush()
    assert len(heard.said) == MOST_PENDING
