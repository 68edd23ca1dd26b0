"""Rows that are asked for at the same time are read together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from kernel import Agent, AgentView, Intent, IntentId, is_uuid
from plugins.storage.ledger.agents import BROKER_THERE, PROJECT_THERE, WAITS
from plugins.storage.ledger.homes import HOMES, Home
from plugins.storage.ledger.query import Hidden, among
from plugins.storage.ledger.rows import AGENT, BROKER, PROJECT, Shape
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.given import Statement, packed
from plugins.storage.schema import agents, messages


def _looked_up(shape: Shape[Any], where: Any, *, of: Any) -> Any:
    """A row of another table that each row of `of` names, in one column."""
    return sa.select(packed(shape.columns)).where(where).correlate(of).scalar_subquery()


# -- intents, with their agents ----------------------------------------------------------------------------------


def _followed(home: Home) -> Any:
    agent = _looked_up(AGENT, agents.c.id == home.agent, of=home.table)
    found = sa.select(agent, *home.shape.columns).where(among(home.c.id, "ids"))
    return found.where(Hidden(home.c.seq).is_not(None)) if home.table is messages else found


_INTENTS = {home.lane: Statement(partial(_followed, home)) for home in HOMES}


async def intents(
    connection: Connection, questions: Sequence[Sequence[IntentId]]
) -> list[list[tuple[Intent, Agent | None]]]:
    """For each list of ids what is there, in its order, with the agents as they are now."""
    asked = [list(dict.fromkeys(IntentId(one.lower()) for one in ids if is_uuid(one))) for ids in questions]
    left = {one for ids in asked for one in ids}
    found: dict[IntentId, tuple[Intent, Agent | None]] = {}
    for home in HOMES:  # what callers wait for is control work
        for row in await _INTENTS[home.lane].rows(connection, ids=list(left)) if left else ():
            intent = home.shape.read(row, 1)
            found[intent.id] = intent, None if row[0] is None else AGENT.read(row[0])
        left -= found.keys()
    return [[found[one] for one in ids if one in found] for ids in asked]


# -- agents, with all that a call about them must know -------------------------------------------------------------


def _viewed() -> Any:
    project = _looked_up(PROJECT, PROJECT_THERE, of=agents)
    broker = _looked_up(BROKER, BROKER_THERE, of=agents)
    return sa.select(project, broker, *WAITS, *AGENT.columns).where(among(agents.c.id, "ids"))


_AGENTS = Statement(_viewed)


def _view(row: Any) -> AgentView:
    project, broker = row[:2]
    return AgentView(
        agent=AGENT.read(row, 2 + len(HOMES)),
        project=PROJECT.read(project),
        broker=None if broker is None else BROKER.read(broker),
        waiting=frozenset(home.lane for home, waits in zip(HOMES, row[2:], strict=False) if waits),
    )


async def views(connection: Connection, ids: Sequence[str], lives: dict[str, int]) -> list[AgentView | None]:
    """By the agents' ids."""
    rows = await _AGENTS.rows(connection, ids=list(set(ids)), **lives)
    found = {view.agent.id: view for view in map(_view, rows)}
    return [found.get(one) for one in ids]  # type: ignore[call-overload]
