"""Applies what agents and brokers report, in the order in which one agent's facts arrived."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import anyio
import anyio.abc

from kernel import wire
from kernel.agent import AgentId, Phase, Report
from kernel.broker import Broker
from kernel.clock import Clock
from kernel.errors import PointsmanError
from kernel.lanes import Lanes, Work
from kernel.link import Link
from kernel.notices import Notices
from kernel.storage import BrokerEdit, ReportOutcome, Storage
from kernel.tunnel import RUNS
from kernel.waiters import Waiters

log = logging.getLogger(__name__)

RUN_PATIENCE = 5.0
"""Seconds for which a report waits for its run to appear in the row: it may overtake the answer that made it."""
QUIET = 5.0
"""Seconds after an intent's end in which a heartbeat without runs is not believed."""


class Reports:
    """One way in for status: HTTP reports of agents, events on the socket, heartbeats of either kind."""

    def __init__(
        self,
        *,
        storage: Storage,
        lanes: Lanes,
        notices: Notices,
        waiters: Waiters,
        clock: Clock,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._storage = storage
        self._lanes = lanes
        self._notices = notices
        self._waiters = waiters
        self._clock = clock
        self._tasks = tasks

    async def apply(self, report: Report, *, patience: float = RUN_PATIENCE) -> ReportOutcome:
        """Apply a report; one of a run that the row does not know yet waits up to 5 s for it."""
        until = self._clock.monotonic() + patience
        while True:
            outcome = await self._store(report)
            if not outcome.run_unknown or not self._may_come(report) or self._clock.monotonic() >= until:
                return outcome
            await self._run_or(until, report)

    async def _store(self, report: Report) -> ReportOutcome:
        outcome = await self._storage.report(report)
        agent = outcome.agent
        if outcome.changed and agent and agent.phase is Phase.RUNNING and agent.runtime_broker_id:
            self._notices.wake(agent.runtime_broker_id)
        return outcome

    def _may_come(self, report: Report) -> bool:
        """The run may be that of an operation whose end is still to be stored, here or on another hub."""
        return report.run_id is not None and report.source != "heartbeat"

    async def _run_or(self, until: float, report: Report) -> None:
        """Wait for the end of the operation that makes this run, if it is in this node's hands; else a moment."""
        makers = self._makers(report)
        left = max(0.0, until - self._clock.monotonic())
        if not makers:
            await anyio.sleep(min(0.25, left))
            return
        with anyio.move_on_after(left):
            await makers[0].settled.wait()

    def _makers(self, report: Report) -> list[Work]:
        """The operations in this node's hands that make the report's run; a broker makes none of another's."""
        works = self._lanes.of_agent(report.agent_id)
        return [
            work
            for work in works
            if work.intent.op in RUNS
            and work.intent.run_id == report.run_id
            and report.broker_id in (None, work.intent.broker_id)
        ]

    # -- events on the socket ----------------------------------------------------------------------------------------

    async def event(self, link: Link, event: wire.Event) -> None:
        match event.event:
            case "agent_status":
                await self._agent_status(link, event.payload)
            case "heartbeat":
                await self.heartbeat(link.broker, event.payload)
            case _:
                pass

    async def _agent_status(self, link: Link, payload: dict[str, Any]) -> None:
        agent_id = _text(payload.get("agentId"))
        if agent_id is None:
            return
        self._note_progress(link, agent_id, _text(payload.get("dispatchId")))
        report = Report(
            agent_id=AgentId(agent_id),
            source="broker",
            run_id=_text(payload.get("runId")),
            phase=phase_of(payload.get("phase")),
            activity=_text(payload.get("activity")),
            detail=payload["detail"] if isinstance(payload.get("detail"), dict) else None,
            tells_runs=not link.stock,
            broker_id=link.session.broker_id,
        )
        makers = self._makers(report)
        if makers and not makers[0].answered:
            self._afterwards(makers[0], report)
        else:
            await self.apply(report, patience=RUN_PATIENCE if makers else 0.0)

    def _afterwards(self, work: Work, report: Report) -> None:
        """It came before the answer of the operation that makes its run: the latest one is applied after its end."""
        if work.report is None:
            self._tasks.start_soon(self._apply_after, work)
        work.report = report

    async def _apply_after(self, work: Work) -> None:
        await work.settled.wait()
        if work.report:
            try:
                await self.apply(work.report, patience=0.0)
            except PointsmanError as fault:
                log.warning(
                    "a report about agent %s was not stored, the next heartbeat repeats it: %s",
                    work.intent.agent_id,
                    fault.message,
                )

    def _note_progress(self, link: Link, agent_id: str, dispatch_id: str | None) -> None:
        """Progress of this intent; from a broker that tags nothing any event of its agent counts."""
        tagged = link.can(wire.PROGRESS)
        for work in self._lanes.of_agent(agent_id):
            if work.link is link and (work.intent.id == dispatch_id or not tagged):
                self._waiters.progress(work.intent.id)
                self._notices.progress(work)
                work.progress = True

    # -- heartbeats --------------------------------------------------------------------------------------------------

    async def heartbeat(self, broker: Broker, payload: dict[str, Any]) -> None:
        """The broker's health and the states of its agents; it never makes a broker online."""
        await self._storage.edit_broker(BrokerEdit(broker_id=broker.id, heartbeat=True))
        for said in _agents(payload):
            await self._heartbeat_of(broker, said)

    async def _heartbeat_of(self, broker: Broker, said: dict[str, Any]) -> None:
        agent_id = await self._agent_id(broker, said)
        if agent_id is None:
            return
        works = self._lanes.of_agent(agent_id)
        report = Report(
            agent_id=agent_id,
            source="heartbeat",
            run_id=_text(said.get("runId")),
            phase=phase_of(said.get("phase")) or phase_of(said.get("status")),
            activity=_text(said.get("activity")),
            tells_runs=bool(broker.capabilities),
            quiet=not works and await self._quiet(agent_id),
            broker_id=broker.id,
        )
        await self._store(report)

    async def _quiet(self, agent_id: AgentId) -> bool:
        """No intent of this agent is unfinished, and none ended a moment ago."""
        return await self._storage.quiet(agent_id, QUIET)

    async def _agent_id(self, broker: Broker, said: dict[str, Any]) -> AgentId | None:
        """By id, as our broker tells it; by project (id or slug) and slug, as a stock one does."""
        named = _text(said.get("agentId"))
        if named:
            return AgentId(named)
        slug, project_ref = _text(said.get("slug")), _text(said.get("project"))
        if not slug or not project_ref:
            return None
        project = await self._storage.find_project(project_ref)
        view = await self._storage.find_agent(slug, project.id) if project else None
        return view.agent.id if view and view.agent.runtime_broker_id == broker.id else None


def _agents(payload: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """What a heartbeat says of agents: `agentStates`, or agents by project (old name: groves)."""
    states = payload.get("agentStates")
    if isinstance(states, list):
        yield from (state for state in states if isinstance(state, dict))
    for name in ("projects", "groves"):
        groups = payload.get(name)
        for group in groups if isinstance(groups, list) else ():
            yield from _of_project(group)


def _of_project(group: Any) -> Iterable[dict[str, Any]]:
    if not isinstance(group, dict) or not isinstance(group.get("agents"), list):
        return
    project = group.get("projectId") or group.get("groveId")
    for agent in group["agents"]:
        if isinstance(agent, dict):
            yield {**agent, "project": project}


def phase_of(value: Any) -> Phase | None:
    """Only a word of the phase list counts as a phase."""
    return Phase(value) if isinstance(value, str) and value in Phase.__members__.values() else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
