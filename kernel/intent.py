"""A durable wish about an agent: its states, and which step may follow which."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NewType

import msgspec

from kernel.agent import AgentId
from kernel.clock import Instant
from kernel.errors import Failure

IntentId = NewType("IntentId", str)
"""UUIDv7 made by the hub that accepted it; the broker's dedupe key over all attempts."""


class Op(StrEnum):
    CREATE = "create"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    SUSPEND = "suspend"
    DELETE = "delete"
    FINALIZE_ENV = "finalize_env"
    CHECK_PROMPT = "check_prompt"
    MESSAGE = "message"

    @classmethod
    def named(cls, text: str) -> Op:
        """The operation of a row. One that only newer hubs know is read too, so that what it waits for can be shown
        and its row be moved; it is in no set of operations, so that nobody here claims it."""
        if text in cls._value2member_map_:
            return cls(text)
        unknown = str.__new__(cls, text)
        unknown._name_, unknown._value_ = text.upper(), text
        return unknown


class Lane(StrEnum):
    """The two queues of one agent. Inside a lane strictly one after the other."""

    CONTROL = "control"
    MESSAGE = "message"


class State(StrEnum):
    """One vocabulary for `state`, `dispatchState` and the column `messages.dispatch_state`."""

    NONE = "none"
    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({State.DONE, State.FAILED, State.EXPIRED, State.CANCELLED})
STARTS = frozenset({Op.CREATE, Op.START, Op.RESTART})
"""The operations that make a run."""
ENDS_RUN = frozenset({Op.STOP, Op.DELETE})
"""The operations that supersede starts which nobody has claimed yet."""

STEPS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.IN_PROGRESS, State.EXPIRED, State.CANCELLED, State.FAILED}),
    State.IN_PROGRESS: frozenset({State.PENDING, *ENDED}),
    **{state: frozenset() for state in ENDED},
}
"""Which state may follow which. `pending` → `failed` is poison, and only that."""


def lane_of(op: Op) -> Lane:
    return Lane.MESSAGE if op is Op.MESSAGE else Lane.CONTROL


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """One row, whichever table holds it. Instants are the database's; `args` never holds a secret."""

    id: IntentId
    op: Op
    lane: Lane
    state: State
    broker_id: str
    agent_id: AgentId
    agent_slug: str
    project_id: str
    seq: int = 0
    attempts: int = 0
    failures: int = 0
    broker_crashes: int = 0
    claimed_by: str | None = None
    claimed_epoch: int | None = None
    claimed_session: str | None = None
    claimed_at: Instant | None = None
    sent_at: Instant | None = None
    accepted_at: Instant | None = None
    progress_at: Instant | None = None
    next_attempt_at: Instant | None = None
    deadline_at: Instant
    route: str
    principal: str
    request_id: str
    node_id: str
    traceparent: str | None = None
    run_id: str | None = None
    requeued_from: str | None = None
    hold: bool = False
    args: dict[str, Any] = {}
    sealed: bytes | None = None
    result: Any = None
    error: Failure | None = None
    created_at: Instant
    ended_at: Instant | None = None

    @property
    def unfinished(self) -> bool:
        return not self.state.ended

    def remaining(self, now: Instant) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, (self.deadline_at - now) / 1_000_000)
