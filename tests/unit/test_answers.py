"""What a caller is told while its row cannot be read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kernel.agent import AgentId
from kernel.answers import Answers
from kernel.clock import SYSTEM, Instant
from kernel.errors import OutcomeUnrecorded, StorageUnavailable
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.node import NodeId
from kernel.observe import Observer
from kernel.waiters import Waiters

pytestmark = pytest.mark.anyio


class Away:
    """A storage whose database does not answer."""

    def __getattr__(self, name: str) -> Any:
        async def asked(*_: object) -> Any:
            raise StorageUnavailable

        return asked


class Silent:
    def tell(self, *arguments: object) -> None:
        """Nobody listens."""


class Spans(msgspec.Struct, frozen=True):
    http_wait: float = 0.2
    rolling_window: float = 60.0


@pytest.mark.parametrize("spans", [Spans(), Spans(http_wait=60.0, rolling_window=0.1)], ids=["wait over", "silence"])
async def test_of_what_was_taken_nobody_is_told_that_nothing_was_done(spans: Spans) -> None:
    away: Any = Away()
    nobody: Any = None
    waiters = Waiters(away, SYSTEM, (0.05,))
    intent = Intent(
        id=IntentId("i"), op=Op.START, lane=Lane.CONTROL, state=State.PENDING, broker_id="b", agent_id=AgentId("a"),
        agent_slug="a", project_id="p", deadline_at=Instant(SYSTEM.now() + 900_000_000), route="forward",
        principal="me", request_id="r", node_id="n", created_at=SYSTEM.now(),
    )  # fmt: skip
    answers = Answers(
        storage=away, waiters=waiters, lanes=SimpleNamespace(find=lambda _: None), ends=nobody, clock=SYSTEM,  # type: ignore[arg-type]
        observer=Observer(Silent(), Silent(), Silent()), node_id=NodeId("n"), settings=spans,
        kick=lambda _: None, stop=lambda _: None, is_calm=lambda: True,
    )  # fmt: skip
    with waiters.register(intent.id) as waiter:
        waiter.recorded = True
        with pytest.raises(OutcomeUnrecorded) as told:
            await answers.of(intent, waiter, None)
    assert told.value.dispatch_id == intent.id
    assert "nothing was done" not in told.value.message
