"""Rows that are asked for at the same time are read together."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from kernel import Agent, AgentView, Intent, IntentId, is_uuid
from plugins.storage.ledger.agents import VIEW, read_view
from plugins.storage.ledger.homes import HOMES
from plugins.storage.ledger.lookups import followed
from plugins.storage.ledger.query import among
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.given import Statement
from plugins.storage.schema import agents

_INTENTS = Statement(lambda: sa.union_all(*(followed(home).where(among(home.c.id, "ids")) for home in HOMES)))
_AGENTS = Statement(lambda: VIEW.where(among(agents.c.id, "ids")))


async def intents(
    connection: Connection, questions: Sequence[Sequence[IntentId]]
) -> list[list[tuple[Intent, Agent | None]]]:
    """For each list of ids what is there, in its order, with the agents as they are now."""
    asked = [list(dict.fromkeys(IntentId(one.lower()) for one in ids if is_uuid(one))) for ids in questions]
    every = list({one for ids in asked for one in ids})
    rows = await _INTENTS.rows(connection, ids=every) if every else []
    found = {row[0].id: row for row in map(HOMES[0].with_agent, rows)}
    return [[found[one] for one in ids if one in found] for ids in asked]


async def views(connection: Connection, ids: Sequence[str], lives: dict[str, int]) -> list[AgentView | None]:
    """Agents with all that a call about them must know, by their ids."""
    rows = await _AGENTS.rows(connection, ids=list(set(ids)), **lives)
    found = {view.agent.id: view for view in map(read_view, rows)}
    return [found.get(one) for one in ids]  # type: ignore[call-overload]
