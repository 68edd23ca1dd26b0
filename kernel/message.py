"""A message: what is said to an agent, which is its own intent, or to a user, which is none."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.clock import Instant
from kernel.intent import State

TEXT_LIMIT = 64 * 1024
"""Bytes of UTF-8 in one message's text (design/contract.md)."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `messages`; to an agent its id is its intent's id."""

    id: str
    project_id: str
    sender: str
    sender_id: str | None = None
    recipient: str
    recipient_id: str | None = None
    recipient_agent_id: str | None = None
    msg: str
    type: str = "instruction"
    urgent: bool = False
    read: bool = False
    agent_id: str | None = None
    group_id: str | None = None
    """What was said to several agents in one call has the same."""
    broadcasted: bool = False
    """It was said to a whole project."""
    envelope: dict[str, Any] = {}
    dispatch_state: State = State.NONE
    created: Instant = Instant(0)
