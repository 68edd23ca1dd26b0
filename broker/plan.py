"""An operation that may be begun: checked, without any effect yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import msgspec

from broker.agent import AgentRecord
from broker.answer import Answer
from broker.inbox import Operation

Perform = Callable[[anyio.Event], Awaitable[Answer]]
"""Carries an operation out; the event is set when a hub asks to stop it. Raises Refusal when nothing took effect."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    operation: Operation
    perform: Perform
    record: AgentRecord | None = None
    """A new agent, as it is to be written down with the operation's beginning."""


async def at_once(answer: Answer) -> Answer:
    """For an operation that has nothing to do."""
    return answer
