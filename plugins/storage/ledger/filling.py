"""What the row of a new intent is filled with."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from kernel import Instant, Invalid, Message, NewIntent
from plugins.storage.ledger.homes import MESSAGES, home_of
from plugins.storage.ledger.query import Query, Tx, first, param
from plugins.storage.ledger.rows import MESSAGE
from plugins.storage.schema import counters, messages

_SEQ = "seq"
_NEXT = Query[int](
    sa.update(counters)
    .values(value=counters.c.value + param("step"))
    .where(counters.c.name == _SEQ)
    .returning(counters.c.value),
    first,
)
_START = Query[Any](sa.insert(counters).values(name=_SEQ, value=param("value")))
_MESSAGE = Query[Message](sa.select(*MESSAGE.columns).where(messages.c.id == param("which")), MESSAGE.read)

# The names of what NewIntent and Intent share are the columns' names.
SHARED = (
    "id", "broker_id", "agent_slug", "project_id", "seq", "attempts", "failures", "claimed_by", "claimed_epoch",
    "claimed_session", "claimed_at", "sent_at", "accepted_at", "deadline_at", "route", "principal", "request_id",
    "node_id", "traceparent", "run_id", "requeued_from", "hold", "args", "sealed", "result", "error", "ended_at",
)  # fmt: skip
OF_MESSAGE = (
    "sender", "sender_id", "recipient", "recipient_id", "msg", "type", "urgent", "read", "agent_id", "group_id",
    "broadcasted", "envelope",
)  # fmt: skip


def row_of(tx: Tx, new: NewIntent, *, seq: int | None, **values: Any) -> dict[str, Any]:
    """Every column of the row. `seq` None: the database numbers it."""
    home = home_of(new.op)
    row: dict[str, Any] = dict.fromkeys(SHARED) | msgspec.structs.asdict(new)
    row |= {
        "seq": seq,
        "failures": 0,
        "deadline_at": min(tx.now + int(new.deadline_in * 1_000_000), new.deadline_at or Instant(2**62)),
        home.agent.name: new.agent_id,
        home.created.name: new.created_at or tx.now,
    }
    row |= {home.state.name if name == "state" else name: value for name, value in values.items()}
    if home is MESSAGES:
        row |= _of_message(tx, new)
    return row


def next_seq(tx: Tx, step: int = 1) -> int:
    """The last of the next `step` numbers."""
    found = tx.one(_NEXT, step=step)
    if found is None:
        found = step
        tx.run(_START, value=found)
    return found


def _of_message(tx: Tx, new: NewIntent) -> dict[str, Any]:
    """What is said. A message that is driven anew says what the old one said."""
    said = new.message or (tx.one(_MESSAGE, which=new.requeued_from) if new.requeued_from else None)
    if said is None:
        raise Invalid(fields={"message": "an intent of op message needs the message that it delivers"})
    return {name: getattr(said, name) for name in OF_MESSAGE}
