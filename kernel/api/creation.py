"""How a new agent comes to be: made and started in one operation of its broker's."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.agent import Agent, AgentId, Phase
from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.operations import Operation, named, operation_of, tell_goes_on
from kernel.api.placement import Placement
from kernel.api.projects import known_project, name_problems
from kernel.broker import Broker, Provider
from kernel.call import Answer, Call
from kernel.errors import AlreadyExists
from kernel.intent import Op
from kernel.project import Project, slug_of
from kernel.session import Principal
from kernel.storage import AgentFilter, AgentView, Page
from kernel.tunnel import needs_env


class AgentOfProject(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`config` is opaque to the hub; beside it stand the fields by which a stock broker knows the same things."""

    name: str
    runtime_broker_id: str | None = None
    task: str | None = None
    template: str | None = None
    image: str | None = None
    workspace: str | None = None
    branch: str | None = None
    profile: str | None = None
    harness_config: Any = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    config: dict[str, Any] = {}
    provision_only: bool = False
    gather_env: bool = False
    resume: bool = False

    def problems(self) -> dict[str, str]:
        return name_problems(self.name)

    def args(self) -> dict[str, Any]:
        """What the broker must know of this creation and the agent's row does not say."""
        said = {
            "task": self.task,
            "template": self.template,
            "image": self.image,
            "workspace": self.workspace,
            "branch": self.branch,
            "profile": self.profile,
            "harnessConfig": self.harness_config,
            "provisionOnly": self.provision_only or None,
            "gatherEnv": self.gather_env or None,
            "resume": self.resume or None,
        }
        return {name: value for name, value in said.items() if value is not None}


class NewAgent(AgentOfProject, frozen=True, kw_only=True, rename="camel"):
    """The same where the path names no project."""

    project_id: str


async def create(edge: Edge, req: Asked, resp: Responded, body: AgentOfProject, project_ref: str) -> None:
    operation = await operation_of(req)

    async def ask() -> Answer:
        project = await known_project(edge, project_ref)
        hold = operation.preferences.deliver == "hold"
        placement = Placement(edge, project, slug_of(body.name), body.labels, hold=hold)
        broker = await placement.choose(body.runtime_broker_id)
        await _check_slug_there(edge, broker, slug_of(body.name))
        agent = _new_agent(AgentId(edge.clock.uuid7()), req.principal, body, project, broker)
        return await edge.dispatcher.call(_call(operation, body, agent, project, broker))

    tell_created(resp, await operation.once(edge, ask, operation.preferences.wait))


async def _check_slug_there(edge: Edge, broker: Broker, slug: str) -> None:
    """A stock broker does not scope slugs by project: one belongs to one live agent over all of them (design/wire.md).

    Raises: AlreadyExists.
    """
    if broker.capabilities or not broker.connection_epoch:
        return
    taken = await edge.storage.list_agents(AgentFilter(runtime_broker_id=broker.id, slug=slug), Page(limit=1))
    if taken:
        raise AlreadyExists(
            f"broker {broker.name} knows agents by slug alone, and {slug} is one of project {taken[0].project_id}: "
            "choose another name, or delete that agent first"
        )


def _call(operation: Operation, body: AgentOfProject, agent: Agent, project: Project, broker: Broker) -> Call:
    """The broker becomes a provider of the project, whoever chose it."""
    linked = Provider(project_id=project.id, broker_id=broker.id, broker_name=broker.name, linked_by=agent.created_by)
    view = AgentView(agent=agent, project=project, broker=broker, waiting=frozenset())
    return operation.call(Op.CREATE, view, args=body.args(), new_agent=agent, provider=linked)


def _new_agent(id: AgentId, principal: Principal, body: AgentOfProject, project: Project, broker: Broker) -> Agent:
    return Agent(
        id=id,
        slug=slug_of(body.name),
        name=body.name,
        project_id=project.id,
        phase=Phase.CREATED,
        runtime_broker_id=broker.id,
        template=body.template,
        image=body.image,
        labels=body.labels,
        annotations=body.annotations,
        config=body.config,
        created_by=principal.id,
        owner_id=principal.id,
        ancestry=[principal.id],
    )


def tell_created(resp: Responded, answer: Answer, status: int = 201) -> None:
    """The agent; 202 with what the broker still needs to know, where it asked for values."""
    if not answer.ended:
        tell_goes_on(resp, answer)
        return
    named(resp, answer.intent)
    told: dict[str, Any] = {"agent": None if answer.agent is None else shapes.agent(answer.agent)}
    said = answer.intent.result
    if needs_env(said):
        told["envGather"] = {**said, "agentId": answer.intent.agent_id}
        status = 202
    tell(resp, told, status)
