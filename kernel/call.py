"""What one request asks of the pipeline, and what the pipeline tells it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from kernel.agent import Agent
from kernel.broker import Provider
from kernel.clock import Instant
from kernel.intent import Intent, Op
from kernel.message import Message
from kernel.storage import AgentView, IdempotencyKey

Deliver = Literal["now", "hold"]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on one agent, asked by one caller."""

    op: Op
    view: AgentView
    """The agent as just read; for `create` the one to be written."""
    principal: str
    request_id: str
    args: dict[str, Any] = {}
    """Every flag of the operation that the broker must know; never a secret."""
    values: dict[str, str] | None = None
    """What the caller supplies for this operation only (finalize_env): stored sealed, wiped at the end."""
    key: IdempotencyKey | None = None
    deliver: Deliver | None = None
    """`Prefer: deliver=…`; None is the operation's own default."""
    deadline_in: float | None = None
    deadline_at: Instant | None = None
    wait: float | None = None
    """Seconds; None is `dispatch.http_wait`, 0 answers as soon as it is durable."""
    traceparent: str | None = None
    message: Message | None = None
    new_agent: Agent | None = None
    provider: Provider | None = None

    @property
    def hold(self) -> bool:
        return self.deliver == "hold" or (self.op is Op.MESSAGE and self.deliver is None)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it so far. `ended` False: it is durable and goes on; follow the dispatch."""

    intent: Intent
    agent: Agent | None
    ended: bool
    repeated: bool = False
    """An earlier request with the same key made it."""
