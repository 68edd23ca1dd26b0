"""A claim of what signals told of is one statement for each lane: what the two make together."""

from __future__ import annotations

import msgspec

from kernel.intent import Intent, Op, lane_of
from kernel.storage import Claims
from plugins.storage.postgres.claiming import joined


def claims(*ops: Op) -> Claims:
    return Claims(intents=tuple(intent(op) for op in ops))


def intent(op: Op) -> Intent:
    of = {"op": op, "lane": lane_of(op), "state": "in_progress", "deadline_at": 0, "created_at": 0}
    return msgspec.convert({name: of.get(name, name) for name in Intent.__struct_fields__ if name in NEEDED}, Intent)


NEEDED = {field.name for field in msgspec.structs.fields(Intent) if field.required}


def test_commands_come_before_messages_whichever_were_taken_first() -> None:
    both = joined(claims(Op.MESSAGE, Op.MESSAGE), claims(Op.STOP))
    assert [one.op for one in both.intents] == [Op.STOP, Op.MESSAGE, Op.MESSAGE]


def test_a_session_that_was_claimed_elsewhere_between_the_two_has_nothing() -> None:
    """Whoever claimed it found what the first took."""
    both = joined(claims(Op.STOP), Claims(stale=True))
    assert both.stale
    assert both.intents == ()
