"""The two tables that hold intents, seen as one: `broker_dispatch`, and `messages`, whose rows are their own intents.

A table is a lane: control in the one, messages in the other. Statements are written once and built for both.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kernel import Agent, Intent, Lane, Op
from plugins.storage.ledger.rows import AGENT, Shape, same_names
from plugins.storage.schema import Text, broker_dispatch, messages

IN_PROGRESS = sa.literal_column("'in_progress'", Text())
"""Written out in statements: a partial index is not found through a parameter."""


class Home:
    """One of the tables, and the columns under which it keeps what both have."""

    def __init__(self, table: sa.Table, lane: Lane, *, agent: str, state: str, created: str, op: Any) -> None:
        self.table = table
        self.lane = lane
        self.c = table.c
        self.agent: sa.Column[Any] = table.c[agent]
        self.state: sa.Column[Any] = table.c[state]
        self.created: sa.Column[Any] = table.c[created]
        self.op: Any = op
        lane_column = table.c.lane if "lane" in table.c else sa.literal_column(f"'{lane}'", Text())
        self.shape: Shape[Intent] = Shape(
            Intent,
            same_names(
                Intent,
                table,
                op=op,
                lane=lane_column,
                state=self.state,
                agent_id=self.agent,
                created_at=self.created,
            ),
        )

    def unfinished(self, table: Any = None) -> Any:
        """The predicate of the partial indexes."""
        return (self.table if table is None else table).c.ended_at.is_(None)

    @property
    def is_intent(self) -> Any:
        """False for messages to users."""
        return self.c.seq.is_not(None) if self.table is messages else sa.true()

    def with_agent(self, row: Any) -> tuple[Intent, Agent | None]:
        """A row of its columns, then those of its agent."""
        at = len(self.shape)
        return self.shape.read(row), AGENT.read(row, at) if row[at] is not None else None

    def select(self) -> sa.Select[Any]:
        return sa.select(*self.shape.columns)

    def update(self, **values: Any) -> sa.Update:
        """A change that gives the rows as they are after it."""
        return self.change(**values).returning(*self.shape.columns)

    def change(self, **values: Any) -> sa.Update:
        """An update; `state` is whatever the table calls it."""
        named = {self.state.name if name == "state" else name: value for name, value in values.items()}
        return sa.update(self.table).values(named)


CONTROL = Home(
    broker_dispatch,
    Lane.CONTROL,
    agent="agent_id",
    state="state",
    created="created_at",
    op=broker_dispatch.c.op,
)
MESSAGES = Home(
    messages,
    Lane.MESSAGE,
    agent="recipient_agent_id",
    state="dispatch_state",
    created="created",
    op=sa.literal_column("'message'", Text()),
)
HOMES = (CONTROL, MESSAGES)


def home_of(op: Op) -> Home:
    return MESSAGES if op is Op.MESSAGE else CONTROL
