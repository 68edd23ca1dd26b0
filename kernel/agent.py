"""An agent: its phases, and what a report about it may change."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, NewType

import msgspec

from kernel.clock import Instant

AgentId = NewType("AgentId", str)


class Phase(StrEnum):
    CREATED = "created"
    PROVISIONING = "provisioning"
    CLONING = "cloning"
    STARTING = "starting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


EDGES: dict[Phase, frozenset[Phase]] = {
    Phase.CREATED: frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING, Phase.STOPPED, Phase.ERROR}),
    Phase.PROVISIONING: frozenset(
        {Phase.CLONING, Phase.STARTING, Phase.RUNNING, Phase.CREATED, Phase.STOPPED, Phase.ERROR}
    ),
    Phase.CLONING: frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPED, Phase.ERROR}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.STOPPING, Phase.STOPPED, Phase.ERROR}),
    Phase.RUNNING: frozenset({Phase.STARTING, Phase.SUSPENDED, Phase.STOPPING, Phase.STOPPED, Phase.ERROR}),
    Phase.SUSPENDED: frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPED, Phase.ERROR}),
    Phase.STOPPING: frozenset({Phase.STOPPED, Phase.RUNNING, Phase.ERROR}),
    Phase.STOPPED: frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING, Phase.STOPPED}),
    Phase.ERROR: frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING, Phase.STOPPED}),
}
"""Which phase may follow which (design/data.md). The end of an intent may take any edge; a report fewer."""

RESTING = frozenset({Phase.STOPPED, Phase.ERROR, Phase.SUSPENDED})
"""No report leaves these: only the end of an intent does."""
HOLDS_MESSAGES = frozenset({Phase.CREATED, Phase.PROVISIONING, Phase.CLONING, Phase.STARTING, Phase.SUSPENDED})
"""Messages wait in their lane until the agent runs."""
ACTIVITIES = frozenset(
    {
        "working",
        "thinking",
        "executing",
        "waiting_for_input",
        "blocked",
        "completed",
        "limits_exceeded",
        "stalled",
        "offline",
        "crashed",
    }
)
LASTING = frozenset({"crashed", "limits_exceeded"})
"""Activities that stay meaningful when the agent no longer runs."""


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `agents`: one program with its own workspace and identity, run by one broker."""

    id: AgentId
    slug: str
    name: str
    project_id: str
    phase: Phase
    runtime_broker_id: str | None = None
    activity: str | None = None
    run_id: str | None = None
    state_version: int = 1
    template: str | None = None
    image: str | None = None
    runtime: str | None = None
    task_summary: str | None = None
    message: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    config: dict[str, Any] = {}
    detail: dict[str, Any] = {}
    created_by: str | None = None
    owner_id: str | None = None
    ancestry: list[str] = []
    created: Instant = Instant(0)
    updated: Instant = Instant(0)
    last_seen: Instant | None = None
    started_at: Instant | None = None
    deleted_at: Instant | None = None


class AgentChange(msgspec.Struct, frozen=True, kw_only=True):
    """What the end of an intent does to its agent's row, in the same transaction. None leaves a field alone."""

    phase: Phase | None = None
    run_id: str | None = None
    activity: str | None = None
    detail: dict[str, Any] | None = None
    image: str | None = None
    runtime: str | None = None
    message: str | None = None
    removal: Literal["soft", "row"] | None = None
    """`soft` marks it deleted; `row` takes a refused creation back."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent, its broker or a heartbeat says about an agent."""

    agent_id: AgentId
    source: Literal["agent", "broker", "heartbeat"]
    run_id: str | None = None
    phase: Phase | None = None
    activity: str | None = None
    detail: dict[str, Any] | None = None
    tells_runs: bool = True
    """False for a stock broker, which names no run."""
    broker_id: str | None = None
    """Set when a broker speaks: it may only speak of its own agents."""
    quiet: bool = True
    """For a heartbeat: no intent of this agent is in flight and none ended less than 5 s ago."""


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that a report changes."""

    phase: Phase
    activity: str | None
    detail: dict[str, Any]


def is_current(agent: Agent, report: Report) -> bool:
    """Whether the report speaks of the run that the row knows (design/data.md)."""
    if report.run_id is not None:
        return report.run_id == agent.run_id
    return not report.tells_runs and agent.phase not in RESTING


def applied(agent: Agent, report: Report) -> Reported | None:
    """What the report makes of the agent; None when it changes nothing."""
    if report.source == "heartbeat" and report.run_id is None:
        if not report.quiet:
            return None
        if _stock_revival(agent, report):
            return Reported(phase=Phase.RUNNING, activity=report.activity, detail=report.detail or agent.detail)
    if not is_current(agent, report):
        return None
    phase = report.phase if report.phase and _may_report(agent.phase, report.phase) else agent.phase
    activity = _activity(agent, report, phase)
    detail = {**agent.detail, **report.detail} if report.detail else agent.detail
    if (phase, activity, detail) == (agent.phase, agent.activity, agent.detail):
        return None
    return Reported(phase=phase, activity=activity, detail=detail)


def _stock_revival(agent: Agent, report: Report) -> bool:
    """A stock broker that says `running` about an agent it stopped before knows better than the row."""
    return not report.tells_runs and agent.phase is Phase.STOPPED and report.phase is Phase.RUNNING


def _may_report(old: Phase, new: Phase) -> bool:
    if old in RESTING:
        return False
    if old is Phase.RUNNING and new is Phase.STARTING:
        return False
    return new in EDGES[old]


def _activity(agent: Agent, report: Report, phase: Phase) -> str | None:
    said = report.activity if report.activity in ACTIVITIES else None
    if phase is Phase.RUNNING:
        return said or (agent.activity if agent.phase is Phase.RUNNING else None)
    if said in LASTING:
        return said
    return agent.activity if agent.activity in LASTING else None
