"""What a node tells others of the brokers and dispatches that are theirs too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from kernel.clock import Clock
from kernel.node import NodeId
from kernel.notices import TELL_EVERY, Notices
from kernel.signals import InProcessSignals, Signal, SignalKind

pytestmark = pytest.mark.anyio


class Told(InProcessSignals):
    """Writes down who was told what."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.told: list[tuple[NodeId | None, Signal]] = []

    def signal(self, node_id: NodeId | None, signal: Signal) -> None:
        self.told.append((node_id, signal))


class Still(Clock):
    """Stands where a test puts it."""

    at = 1_000.0

    def monotonic(self) -> float:
        return self.at


class Node:
    def __init__(self) -> None:
        self.clock = Still()
        self.signals = Told(self.clock)
        observer: Any = None
        self.notices = Notices(signals=self.signals, observer=observer, node_id=NodeId("me"), clock=self.clock)


def work(node_id: str) -> Any:
    return SimpleNamespace(intent=SimpleNamespace(id="i", node_id=node_id), told_at=float("-inf"))


async def test_node_that_accepted_a_dispatch_is_told_that_it_moves_on_but_not_at_each_step() -> None:
    node, theirs = Node(), work("other")
    for _ in range(3):
        node.notices.progress(theirs)
    told = (NodeId("other"), Signal(kind=SignalKind.PROGRESS, ids=("i",)))
    assert node.signals.told == [told]
    node.clock.at += TELL_EVERY
    node.notices.progress(theirs)
    assert node.signals.told == [told, told]


async def test_nobody_is_told_of_the_progress_of_a_dispatch_that_was_accepted_here() -> None:
    node = Node()
    node.notices.progress(work("me"))
    assert node.signals.told == []


async def test_change_of_a_broker_is_told_to_all_since_its_holder_may_have_changed() -> None:
    node = Node()
    node.notices.tell_holder("b", SignalKind.REVOKED, "session")
    await anyio.sleep(0)
    assert node.signals.told == [(None, Signal(kind=SignalKind.REVOKED, broker_id="b", ids=("session",)))]
