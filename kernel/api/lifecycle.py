"""What is done to an agent by its broker: start, stop, restart, suspend, values it asked for, its prompt."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.agent import Phase
from kernel.api.creation import tell_created
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.operations import live_agent, named, operation_of, tell_agent, tell_goes_on
from kernel.api.routes import route
from kernel.call import Answer
from kernel.errors import InvalidState
from kernel.intent import Op


class Start(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    task: str | None = None
    resume: bool = False
    harness_config: Any = None


class Values(msgspec.Struct, frozen=True, kw_only=True):
    env: dict[str, str]


class Lifecycle:
    """Whether an operation makes sense in the agent's phase is the broker's to say: it knows better."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="agent.start", access="user", body=Start)
    async def on_post_start(self, req: Asked, resp: Responded, agent: str, body: Start, project: str = "") -> None:
        tell_agent(resp, await self._ask(req, agent, project, Op.START, _flags(body)))

    @route(action="agent.restart", access="user", body=Start)
    async def on_post_restart(self, req: Asked, resp: Responded, agent: str, body: Start, project: str = "") -> None:
        tell_agent(resp, await self._ask(req, agent, project, Op.RESTART, _flags(body)))

    @route(action="agent.stop", access="user")
    async def on_post_stop(self, req: Asked, resp: Responded, agent: str, project: str = "") -> None:
        tell_agent(resp, await self._ask(req, agent, project, Op.STOP))

    @route(action="agent.suspend", access="user")
    async def on_post_suspend(self, req: Asked, resp: Responded, agent: str, project: str = "") -> None:
        tell_agent(resp, await self._ask(req, agent, project, Op.SUSPEND))

    @route(action="agent.env", access="user", body=Values)
    async def on_post_env(self, req: Asked, resp: Responded, agent: str, body: Values, project: str = "") -> None:
        """The values that a creation asked for; the agent waits for them in `provisioning`."""
        answer = await self._ask(req, agent, project, Op.FINALIZE_ENV, values=body.env)
        tell_created(resp, answer, status=200)

    @route(action="agent.prompt", access="user")
    async def on_get_prompt(self, req: Asked, resp: Responded, agent: str, project: str = "") -> None:
        answer = await self._ask(req, agent, project, Op.CHECK_PROMPT)
        if not answer.ended:
            tell_goes_on(resp, answer)
            return
        named(resp, answer.intent)
        said = answer.intent.result
        tell(resp, {"hasPrompt": bool(said.get("hasPrompt")) if isinstance(said, dict) else False})

    async def _ask(
        self,
        req: Asked,
        agent: str,
        project: str,
        op: Op,
        args: dict[str, Any] | None = None,
        values: dict[str, str] | None = None,
    ) -> Answer:
        operation = await operation_of(req)

        async def ask() -> Answer:
            view = await live_agent(self._edge, agent, project)
            if op is Op.FINALIZE_ENV and view.agent.phase is not Phase.PROVISIONING:
                raise InvalidState(f"agent {view.agent.slug} is {view.agent.phase}: it asks for no values")
            flags = dict(args or {})
            if op is Op.START and view.agent.phase is Phase.SUSPENDED:
                flags["resume"] = True  # what the broker must know travels with the intent, whatever comes meanwhile
            return await self._edge.dispatcher.call(operation.call(op, view, args=flags, values=values))

        return await operation.once(self._edge, ask, operation.preferences.wait)


def _flags(body: Start) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    if body.task is not None:
        flags["task"] = body.task
    if body.resume:
        flags["resume"] = True
    if body.harness_config is not None:
        flags["harnessConfig"] = body.harness_config
    return flags
