"""An end that cannot be stored as it is: what is stored instead is true, and the hub goes on."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest

from kernel.clock import SYSTEM
from kernel.ends import Ends
from kernel.errors import Invalid
from kernel.intent import State
from kernel.node import NodeId
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.signals import InProcessSignals
from kernel.storage import End, Settled
from kernel.tunnel import Outcome
from kernel.waiters import Waiters
from tests.unit.test_dispatch_lanes import Silent, a_link, a_work

pytestmark = pytest.mark.anyio

DONE = Outcome(kind="end", reason="answered", result={"said": "it"})
FAILED = Outcome(kind="end", reason="broker_500", state=State.FAILED)


class Picky:
    """A storage that takes an end only when nothing of the broker's answer is in it."""

    def __init__(self, fault: Exception) -> None:
        self.fault = fault
        self.asked: list[End] = []

    async def end(self, end: End) -> Settled:
        self.asked.append(end)
        if end.reason != "unstorable":
            raise self.fault
        return Settled(accepted=True)


async def stored(storage: Any, outcome: Outcome) -> End:
    async with anyio.create_task_group() as tasks:
        signals, observer = InProcessSignals(SYSTEM), Observer(Silent(), Silent(), Silent())
        ends = Ends(
            storage=storage,
            signals=signals,
            notices=Notices(signals=signals, observer=observer, node_id=NodeId("n"), clock=SYSTEM),
            waiters=Waiters(storage, SYSTEM, (math.inf,)),
            observer=observer,
            clock=SYSTEM,
            node_id=NodeId("n"),
            tasks=tasks,
            lazy=lambda _: False,
        )
        with anyio.fail_after(10):
            await ends.settle(a_work(a_link(), "1"), outcome)
    end: End = storage.asked[-1]
    return end


@pytest.mark.parametrize("fault", [Invalid(fields={"result": "no such value"}), ValueError("a slip of ours")])
@pytest.mark.parametrize(("outcome", "code"), [(DONE, "outcome_unknown"), (FAILED, "runtime_error")])
async def test_what_took_effect_is_not_told_as_failed(fault: Exception, outcome: Outcome, code: str) -> None:
    storage = Picky(fault)
    end = await stored(storage, outcome)
    assert (len(storage.asked), end.state, end.result) == (2, State.FAILED, None)
    assert end.error is not None
    assert end.error.code == code
    assert "a slip" not in end.error.message
