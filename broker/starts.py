"""Create, start, restart and the values that a create waits for: everything that begins a run."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from broker.agent import AgentRecord
from broker.agents import Agents
from broker.answer import Answer, Refusal, said
from broker.calls import Call
from broker.environment import Needs, Supplied, environment, needs, supplied
from broker.inbox import Operation
from broker.plan import Plan, at_once
from broker.runtimes import Launch, Runtime
from broker.settings import BrokerSettings


class Starts:
    """One plan an operation. `hub` in them is the address from which the request came."""

    def __init__(self, settings: BrokerSettings, agents: Agents, runtime: Runtime) -> None:
        self._settings = settings
        self._agents = agents
        self._runtime = runtime

    def create(self, call: Call, hub: str) -> Plan:
        agent_id, slug = call.agent_id, call.ref
        if not agent_id or not slug or not call.project_id:
            raise Refusal(400, "invalid_request", "create needs id, slug and projectId")
        if self._agents.get(agent_id) or self._agents.by_slug(call.project_id, slug):
            raise Refusal(409, "already_exists", f"this broker has an agent {slug} in project {call.project_id}")
        config = self._config(call, None)
        record = AgentRecord(
            id=agent_id, slug=slug, name=call.text("name") or slug, project_id=call.project_id, phase="created",
            config=config, task=supplied(call.body, hub).task,
        )  # fmt: skip
        operation = Operation(op="create", agent_id=agent_id, run_id=_run_of(call))
        if call.body.get("provisionOnly") is True:
            return Plan(operation=operation, record=record, perform=lambda _: at_once(self._agents.told(agent_id, 201)))
        missing = self._needs(config, supplied(call.body, hub))
        if missing.missing and call.body.get("gatherEnv") is True:
            gathered = msgspec.structs.replace(record, phase="provisioning", gathered=msgspec.json.encode(call.body))
            asked = said(202, missing.told(agent_id))
            return Plan(operation=operation, record=gathered, perform=lambda _: at_once(asked))
        launch = self._launch(agent_id, _run_of(call), config, call.body, hub)
        starting = msgspec.structs.replace(record, phase="starting", run_id=launch.run_id)

        async def perform(cancelled: anyio.Event) -> Answer:
            try:
                _still_wanted(cancelled)
                return await self._run(launch, 201)
            except Refusal:
                self._agents.drop(agent_id)
                await self._runtime.remove(agent_id, files=True)
                raise

        return Plan(operation=operation, record=starting, perform=perform)

    def start(self, call: Call, hub: str) -> Plan:
        """An agent that this broker never saw, or lost, is made here: the request says all that is needed."""
        known = self._agents.of(call)
        record = known or _found(call)
        config, run_id = self._config(call, record), _run_of(call)
        task = supplied(call.body, hub).task
        then = task or record.task
        operation = Operation(op=call.op, agent_id=record.id, run_id=run_id, config=config, task=then)
        # it goes on under the run that it has, and its answer says which: the agent itself reports under that name
        if call.op == "start" and task is None and self._runtime.runs(record.id):
            return Plan(operation=operation, perform=lambda _: at_once(self._agents.told(record.id, 200)))
        launch = self._launch(record.id, run_id, config, call.body, hub)

        async def perform(cancelled: anyio.Event) -> Answer:
            _still_wanted(cancelled)
            await self._runtime.stop(record.id, "restart")
            changed = msgspec.structs.replace(self._agents.now(record.id), config=config, task=then, gathered=None)
            self._agents.put(changed)
            return await self._run(launch, 200)

        return Plan(operation=operation, perform=perform, record=None if known else record)

    def finalize_env(self, call: Call, hub: str) -> Plan:
        record = self._agents.known(call)
        if record.gathered is None:
            raise Refusal(409, "invalid_state", f"agent {record.slug} does not wait for its environment")
        values = call.body.get("env") or {}
        if not isinstance(values, dict):
            raise Refusal(422, "invalid_environment", "env maps names to texts")
        body = msgspec.json.decode(record.gathered)
        body["resolvedEnv"] = {**(body.get("resolvedEnv") or {}), **values}
        run_id = call.text("runId") or body.get("runId") or call.id
        launch = self._launch(record.id, run_id, record.config, body, hub)

        async def perform(cancelled: anyio.Event) -> Answer:
            _still_wanted(cancelled)
            answer = await self._run(launch, 201)
            self._agents.put(msgspec.structs.replace(self._agents.now(record.id), gathered=None))
            return answer

        return Plan(operation=Operation(op=call.op, agent_id=record.id, run_id=run_id), perform=perform)

    async def _run(self, launch: Launch, status: int) -> Answer:
        """Start a run; the agent is as before when it could not be started. Raises: Refusal."""
        before = self._agents.now(launch.agent_id)
        starting: dict[str, Any] = {"phase": "starting", "run_id": launch.run_id, "activity": None, "detail": {}}
        self._agents.put(msgspec.structs.replace(before, **starting))
        try:
            await self._runtime.start(launch)
        except Refusal:
            self._agents.put(before)
            raise
        return self.started(launch.agent_id, status)

    def started(self, agent_id: str, status: int) -> Answer:
        """The answer of a start that took effect; an agent may have ended again by now."""
        record = self._agents.now(agent_id)
        if record.phase == "starting":
            self._agents.put(msgspec.structs.replace(record, phase="running"))
        return self._agents.told(agent_id, status)

    def _config(self, call: Call, record: AgentRecord | None) -> dict[str, Any]:
        config = call.body.get("inlineConfig")
        if config is None:
            config = record.config if record else {}
        faults = {"": "is an object"} if not isinstance(config, dict) else self._runtime.faults(config)
        if faults:
            fields = {f"config.{name}".rstrip("."): why for name, why in faults.items()}
            told = "; ".join(f"{name} {why}" for name, why in fields.items())
            why = f"the agent cannot run as configured: {told}"
            raise Refusal(422, "invalid_config", why, details={"fields": fields})
        checked: dict[str, Any] = config
        return checked

    def _needs(self, config: dict[str, Any], given: Supplied) -> Needs:
        return needs(self._runtime.required(config), config, given, self._settings.pass_env)

    def _launch(self, agent_id: str, run_id: str, config: dict[str, Any], body: dict[str, Any], hub: str) -> Launch:
        given = supplied(body, hub)
        if missing := self._needs(config, given).missing:
            fields = {f"env.{name}": "is required by the agent's configuration and has no value" for name in missing}
            told = f"values are missing: {', '.join(missing)}"
            raise Refusal(422, "missing_environment", told, details={"fields": fields})
        values = environment(agent_id, run_id, config, given, self._settings.pass_env)
        return Launch(agent_id=agent_id, run_id=run_id, config=config, environment=values)


def _found(call: Call) -> AgentRecord:
    agent_id = call.agent_id or call.text("agentId")
    if not agent_id or call.body.get("inlineConfig") is None:
        raise Refusal(404, "not_found", f"this broker has no agent {call.ref} in project {call.project_id}")
    return AgentRecord(id=agent_id, slug=call.ref, name=call.ref, project_id=call.project_id, phase="created")


def _still_wanted(cancelled: anyio.Event) -> None:
    if cancelled.is_set():
        raise Refusal(499, "cancelled", "it was cancelled before the agent was started")


def _run_of(call: Call) -> str:
    """A hub that names no run gets one by the dispatch: the same over all attempts."""
    return call.text("runId") or call.id
