"""What agents, brokers and heartbeats say of an agent, applied by compare-and-set on its version."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from kernel import Agent, AgentId, Report, ReportOutcome, applied, is_uuid
from plugins.storage.ledger.agents import agent_by_id
from plugins.storage.ledger.homes import HOMES, Home
from plugins.storage.ledger.query import NOW, Overtaken, Query, Tx, first, param
from plugins.storage.ledger.rows import AGENT
from plugins.storage.schema import agents

SEEN_EVERY = 10 * 1_000_000
"""Microseconds in which reports that change nothing stamp `last_seen` once: a heartbeat costs no write each time."""
QUIET = 5.0
"""Seconds after an end in which a heartbeat that names no run may still tell of the time before it."""
NEWEST = 20
"""How many of an agent's newest intents are looked at for one that ended a moment ago: inside a lane the newest ends
last, but for some that were cancelled or expired while they waited."""

_c = agents.c
_APPLY = Query(
    sa.update(agents)
    .values(
        phase=param("to_phase"),
        activity=param("to_activity"),
        detail=param("to_detail"),
        last_seen=NOW,
        updated=NOW,
        state_version=_c.state_version + 1,
    )
    .where(_c.id == param("which"), _c.state_version == param("version"))
    .returning(*AGENT.columns),
    AGENT.read,
)
# Alone with the row: however many speak of one agent at once, each is heard.
_LOCKED = Query(
    sa.select(*AGENT.columns).where(_c.id == param("which")).with_for_update(key_share=True),
    AGENT.read,
)
_SEEN = Query[Any](sa.update(agents).values(last_seen=NOW).where(_c.id == param("which")))


def report(tx: Tx, said: Report) -> ReportOutcome:
    """Reports about a deleted agent, or about another broker's, find none."""
    if not is_uuid(said.agent_id):
        return ReportOutcome(agent=None, changed=False)
    which = said.agent_id.lower()
    if _guesses(said):
        return _heard_in_quiet(tx, said, which)
    outcome = _heard(tx, said, agent_by_id(tx, which)) or _heard(tx, said, tx.one(_LOCKED, which=which))
    if outcome is None:
        raise Overtaken
    return outcome


def _guesses(said: Report) -> bool:
    """A heartbeat that names no run is believed in quiet only, and that may be over."""
    return said.source == "heartbeat" and said.run_id is None and said.quiet


def _heard_in_quiet(tx: Tx, said: Report, which: str) -> ReportOutcome:
    """With the row alone: an end that changes the agent is seen, or comes after this."""
    agent = agent_by_id(tx, which)
    if agent is not None and applied(agent, said) is not None:
        agent = tx.one(_LOCKED, which=which)
        said = msgspec.structs.replace(said, quiet=quiet(tx, said.agent_id, QUIET))
    outcome = _heard(tx, said, agent)
    if outcome is None:
        raise Overtaken
    return outcome


def _heard(tx: Tx, said: Report, agent: Agent | None) -> ReportOutcome | None:
    """None: the agent was changed since it was read."""
    if agent is None or agent.deleted_at is not None or said.broker_id not in (None, agent.runtime_broker_id):
        return ReportOutcome(agent=None, changed=False)
    changed = applied(agent, said)
    run_unknown = said.run_id is not None and said.run_id != agent.run_id
    if changed is None:
        if not run_unknown:
            _stamp(tx, agent)
        return ReportOutcome(agent=agent, changed=False, run_unknown=run_unknown)
    after = tx.one(
        _APPLY,
        which=agent.id,
        version=agent.state_version,
        to_phase=changed.phase,
        to_activity=changed.activity,
        to_detail=changed.detail,
    )
    return None if after is None else ReportOutcome(agent=after, changed=True, run_unknown=run_unknown)


def _stamp(tx: Tx, agent: Agent) -> None:
    if agent.last_seen is None or tx.now - agent.last_seen >= SEEN_EVERY:
        tx.run(_SEEN, which=agent.id)


def _busy(home: Home) -> Query[Any]:
    newest = (
        sa.select(home.c.ended_at)
        .where(home.agent == param("which"), home.is_intent)
        .order_by(home.created.desc(), home.c.id.desc())
        .limit(NEWEST)
        .subquery()
    )
    just_ended = sa.select(newest.c.ended_at).where(newest.c.ended_at > param("since"))
    unfinished: Any = sa.select(sa.literal_column("1")).where(
        home.c.broker_id == sa.select(_c.runtime_broker_id).where(_c.id == param("which")).scalar_subquery(),
        home.agent == param("which"),
        home.unfinished(),
    )
    return Query(sa.select(sa.or_(unfinished.exists(), just_ended.exists())), first)


_BUSY = [_busy(home) for home in HOMES]


def quiet(tx: Tx, agent_id: AgentId, seconds: float) -> bool:
    """No intent of this agent is unfinished, and none ended less than `seconds` ago."""
    if not is_uuid(agent_id):
        return True
    since = tx.now - int(seconds * 1_000_000)
    return not any(tx.one(busy, which=agent_id.lower(), since=since) for busy in _BUSY)
