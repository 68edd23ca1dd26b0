"""Agents: made, listed, shown, edited, deleted; what they report; what they printed."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from kernel.agent import Agent, AgentId, Phase, Report
from kernel.api import instants, shapes
from kernel.api.creation import AgentOfProject, NewAgent, create
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.logs import printed
from kernel.api.operations import (
    known_agent,
    live_agent,
    named,
    operation_of,
    tell_goes_on,
)
from kernel.api.pages import PageQuery, listed
from kernel.api.projects import known_project, name_problems
from kernel.api.routes import route
from kernel.call import Answer
from kernel.errors import Invalid, NotFound
from kernel.intent import Op
from kernel.storage import AgentEdit, AgentFilter


class AgentQuery(PageQuery, frozen=True, kw_only=True, rename="camel"):
    project_id: str | None = None
    runtime_broker_id: str | None = None
    slug: str | None = None
    phase: Phase | None = None
    include_deleted: bool = False


Version = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class AgentPatch(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    task_summary: str | None = None
    config: dict[str, Any] | None = None
    state_version: Version | None = None

    def problems(self) -> dict[str, str]:
        return {} if self.name is None else name_problems(self.name)


class Deletion(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    delete_files: bool = True
    remove_branch: bool = True
    force: bool = False

    def args(self) -> dict[str, Any]:
        said = {"deleteFiles": self.delete_files, "removeBranch": self.remove_branch}
        return {**said, "force": True} if self.force else said


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    run_id: str | None = None
    phase: Phase | None = None
    activity: str | None = None
    detail: dict[str, Any] | None = None


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    tail: int | None = None

    def problems(self) -> dict[str, str]:
        return {"tail": "expected a number of lines, 1 or more"} if self.tail is not None and self.tail < 1 else {}


class Agents:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    # -- many ----------------------------------------------------------------------------------------------------

    @route(action="agent.list", access="user", query=AgentQuery)
    async def on_get(self, req: Asked, resp: Responded, query: AgentQuery) -> None:
        ref = query.project_id
        found = await self._edge.storage.find_project(ref) if ref else None
        await self._list(resp, query, found.id if found else ref)

    @route(action="agent.list", access="user", query=AgentQuery)
    async def on_get_in_project(self, req: Asked, resp: Responded, query: AgentQuery, project: str) -> None:
        await self._list(resp, query, (await known_project(self._edge, project)).id)

    async def _list(self, resp: Responded, query: AgentQuery, project_id: str | None) -> None:
        storage = self._edge.storage
        where = AgentFilter(
            project_id=project_id,
            runtime_broker_id=query.runtime_broker_id,
            slug=query.slug,
            phase=query.phase,
            include_deleted=query.include_deleted,
        )
        rows = await storage.list_agents(where, query.page)
        total = await storage.count_agents(where)
        answer = listed("agents", rows, query.page, created=lambda row: row.created, show=shapes.agent, total=total)
        tell(resp, {**answer, "serverTime": instants.written(self._edge.clock.now())})

    @route(action="agent.create", access="user", body=NewAgent)
    async def on_post(self, req: Asked, resp: Responded, body: NewAgent) -> None:
        await create(self._edge, req, resp, body, body.project_id)

    @route(action="agent.create", access="user", body=AgentOfProject)
    async def on_post_in_project(self, req: Asked, resp: Responded, body: AgentOfProject, project: str) -> None:
        await create(self._edge, req, resp, body, project)

    # -- one -----------------------------------------------------------------------------------------------------

    @route(action="agent.show", access="user")
    async def on_get_one(self, req: Asked, resp: Responded, agent: str, project: str = "") -> None:
        _tell_versioned(resp, (await known_agent(self._edge, agent, project)).agent)

    @route(action="agent.edit", access="user", body=AgentPatch)
    async def on_patch_one(self, req: Asked, resp: Responded, agent: str, body: AgentPatch, project: str = "") -> None:
        view = await live_agent(self._edge, agent, project)
        edited = await self._edge.storage.edit_agent(
            AgentEdit(
                agent_id=view.agent.id,
                state_version=body.state_version if body.state_version is not None else _if_match(req),
                name=body.name,
                labels=body.labels,
                annotations=body.annotations,
                task_summary=body.task_summary,
                config=body.config,
            )
        )
        _tell_versioned(resp, edited)

    @route(action="agent.delete", access="user", query=Deletion)
    async def on_delete_one(self, req: Asked, resp: Responded, agent: str, query: Deletion, project: str = "") -> None:
        operation = await operation_of(req)

        async def ask() -> Answer:
            view = await live_agent(self._edge, agent, project)
            return await self._edge.dispatcher.call(operation.call(Op.DELETE, view, args=query.args()))

        answer = await operation.once(self._edge, ask, operation.preferences.wait)
        if not answer.ended:
            tell_goes_on(resp, answer)
            return
        named(resp, answer.intent)
        resp.status = 204

    @route(action="agent.status", access="agent", body=Status)
    async def on_post_status(self, req: Asked, resp: Responded, agent: str, body: Status, project: str = "") -> None:
        """What the agent says of itself. Another run's report is no error: it changes nothing."""
        report = Report(
            agent_id=AgentId(req.principal.id),
            source="agent",
            run_id=body.run_id or req.principal.claims.get("run_id"),
            phase=body.phase,
            activity=body.activity,
            detail=body.detail,
        )
        outcome = await self._edge.reports.apply(report)
        if outcome.agent is None:
            raise NotFound(f"there is no agent {agent}")
        resp.status = 204

    @route(action="agent.logs", access="user", query=Tail)
    async def on_get_logs(self, req: Asked, resp: Responded, agent: str, query: Tail, project: str = "") -> None:
        view = await live_agent(self._edge, agent, project)
        tell(resp, {"logs": await printed(self._edge, view, query.tail)})


def _tell_versioned(resp: Responded, agent: Agent) -> None:
    resp.set_header("ETag", f'"{agent.state_version}"')
    tell(resp, shapes.agent(agent))


def _if_match(req: Asked) -> int | None:
    """Raises: Invalid."""
    given = (req.get_header("If-Match") or "*").strip()
    if given == "*":
        return None
    number = given.removeprefix("W/").strip('"')
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise Invalid(fields={"If-Match": "expected the ETag of an earlier answer"})
    return int(number)
