"""The tunnelled endpoints: what each asks of the agents, and what it answers.

An operation is planned first, without any effect; then it is written down; then it is carried out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import msgspec

from broker.agent import AgentRecord
from broker.agents import Agents
from broker.answer import TEXT, Answer, Refusal, refused, said
from broker.calls import Call
from broker.environment import Needs, Supplied, environment, needs, supplied
from broker.inbox import Operation
from broker.runtimes import Delivered, Launch, Runtime
from broker.settings import BrokerSettings

LOG_BYTES = 512 * 1024
LOG_LINES = 1_000
MOST_LOG_LINES = 100_000
EXEC_TIMEOUT = 30.0
MOST_EXEC_TIMEOUT = 600.0

Perform = Callable[[anyio.Event], Awaitable[Answer]]
"""Carries an operation out; the event is set when a hub asks to stop it. Raises Refusal when nothing took effect."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that may be begun."""

    operation: Operation
    perform: Perform
    record: AgentRecord | None = None
    """The agent as it is to be written down with the operation's beginning."""


class Endpoints:
    """One method an operation. `hub` in them is the address from which the request came."""

    def __init__(self, settings: BrokerSettings, agents: Agents, runtime: Runtime, about: dict[str, Any]) -> None:
        self._settings = settings
        self._agents = agents
        self._runtime = runtime
        self._about = about

    def plan(self, call: Call, hub: str) -> Plan:
        """Raises: Refusal."""
        match call.op:
            case "create":
                return self._create(call, hub)
            case "start" | "restart":
                return self._start(call, hub)
            case "finalize_env":
                return self._finalize_env(call, hub)
            case "stop" | "suspend":
                return self._stop(call)
            case "delete":
                return self._delete(call)
            case "message":
                return self._message(call)
            case "exec":
                return self._exec(call)
        raise Refusal(404, "not_found", f"{call.op} is no operation")

    # -- starting ----------------------------------------------------------------------------------------------------

    def _create(self, call: Call, hub: str) -> Plan:
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
            return Plan(operation=operation, record=record, perform=lambda _: self._as_it_is(agent_id, 201))
        missing = self._needs(config, supplied(call.body, hub))
        if missing.missing and call.body.get("gatherEnv") is True:
            gathered = msgspec.structs.replace(record, phase="provisioning", gathered=msgspec.json.encode(call.body))
            asked = said(202, missing.told(agent_id))
            return Plan(operation=operation, record=gathered, perform=lambda _: _answer(asked))
        launch = self._launch(agent_id, _run_of(call), config, call.body, hub)
        starting = msgspec.structs.replace(record, phase="starting", run_id=launch.run_id, keeper_run=launch.run_id)

        async def perform(cancelled: anyio.Event) -> Answer:
            try:
                return await self._run(launch, cancelled, 201)
            except Refusal:
                self._agents.drop(agent_id)
                raise

        return Plan(operation=operation, record=starting, perform=perform)

    def _start(self, call: Call, hub: str) -> Plan:
        """An agent that this broker never saw, or lost, is made here: the request says all that is needed."""
        known = self._agents.of(call)
        record = known or self._found(call)
        config, run_id = self._config(call, record), _run_of(call)
        task = supplied(call.body, hub).task
        then = task or record.task
        operation = Operation(op=call.op, agent_id=record.id, run_id=run_id, config=config, task=then)
        if call.op == "start" and task is None and self._runtime.runs(record.id):
            return Plan(operation=operation, perform=lambda _: self._go_on(record.id, run_id))
        launch = self._launch(record.id, run_id, config, call.body, hub)

        async def perform(cancelled: anyio.Event) -> Answer:
            await self._runtime.stop(record.id, "restart")
            self._agents.put(msgspec.structs.replace(self._now(record.id), config=config, task=then, gathered=None))
            return await self._run(launch, cancelled, 200)

        return Plan(operation=operation, perform=perform, record=None if known else record)

    def _finalize_env(self, call: Call, hub: str) -> Plan:
        record = self._known(call)
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
            answer = await self._run(launch, cancelled, 201)
            self._agents.put(msgspec.structs.replace(self._now(record.id), gathered=None))
            return answer

        return Plan(operation=Operation(op=call.op, agent_id=record.id, run_id=run_id), perform=perform)

    async def _run(self, launch: Launch, cancelled: anyio.Event, status: int) -> Answer:
        """Start a run; the agent is as before when it could not be started. Raises: Refusal."""
        before = self._now(launch.agent_id)
        if cancelled.is_set():
            raise Refusal(499, "cancelled", "it was cancelled before the agent was started")
        run = {"run_id": launch.run_id, "keeper_run": launch.run_id}
        self._agents.put(msgspec.structs.replace(before, phase="starting", activity=None, detail={}, **run))
        try:
            await self._runtime.start(launch)
        except Refusal:
            self._agents.put(before)
            raise
        return self.started(launch.agent_id, status)

    def started(self, agent_id: str, status: int) -> Answer:
        """The answer of a start that took effect; an agent may have ended again by now."""
        record = self._now(agent_id)
        if record.phase == "starting":
            record = msgspec.structs.replace(record, phase="running")
            self._agents.put(record)
        body: dict[str, Any] = {"agent": record.told(), "phase": record.phase}
        return said(status, {**body, "created": True} if status == 201 else body)

    async def _go_on(self, agent_id: str, run_id: str) -> Answer:
        """A start of an agent that runs: it goes on, under the run that the hub now calls it by."""
        self._agents.put(msgspec.structs.replace(self._now(agent_id), run_id=run_id))
        return await self._as_it_is(agent_id, 200)

    async def _as_it_is(self, agent_id: str, status: int) -> Answer:
        record = self._now(agent_id)
        body: dict[str, Any] = {"agent": record.told(), "phase": record.phase}
        return said(status, {**body, "created": True} if status == 201 else body)

    def _config(self, call: Call, record: AgentRecord | None) -> dict[str, Any]:
        config = call.body.get("inlineConfig")
        if config is None:
            config = record.config if record else {}
        faults = {"": "is an object"} if not isinstance(config, dict) else self._runtime.faults(config)
        if faults:
            fields = {f"config.{name}".rstrip("."): why for name, why in faults.items()}
            told = "; ".join(f"{name} {why}" for name, why in fields.items())
            raise Refusal(
                422, "invalid_config", f"the agent cannot run as configured: {told}", details={"fields": fields}
            )
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

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _stop(self, call: Call) -> Plan:
        record = self._agents.of(call)
        if record is None and call.op == "stop":
            told = said(200, {"phase": "stopped"})
            operation = Operation(op="stop", agent_id=call.agent_id or call.ref)
            return Plan(operation=operation, perform=lambda _: _answer(told))
        agent_id = self._known(call).id
        operation = Operation(op=call.op, agent_id=agent_id)
        return Plan(operation=operation, perform=lambda _: self.stop(agent_id, call.op))

    async def stop(self, agent_id: str, op: str) -> Answer:
        """Also for one that does not run: then its phase is all that changes."""
        ended = await self._runtime.stop(agent_id, op)
        record = self._now(agent_id)
        phase = "suspended" if op == "suspend" else "stopped"
        detail = record.detail if ended is None or ended.exit_code is None else {"exitCode": ended.exit_code}
        self._agents.put(msgspec.structs.replace(record, phase=phase, activity=None, detail=detail, gathered=None))
        return await self._as_it_is(agent_id, 200)

    def _delete(self, call: Call) -> Plan:
        agent_id = self._known(call).id
        operation = Operation(op="delete", agent_id=agent_id, query=call.query)
        return Plan(operation=operation, perform=lambda _: self.delete(agent_id, call.query))

    async def delete(self, agent_id: str, query: dict[str, str]) -> Answer:
        """Its own working directory goes only with `deleteFiles=true`, and stays with `softDelete=true`."""
        await self._runtime.stop(agent_id, "delete")
        files = query.get("deleteFiles") == "true" and query.get("softDelete") != "true"
        await self._runtime.remove(agent_id, files=files)
        self._agents.drop(agent_id)
        return Answer(status=204)

    # -- talking -----------------------------------------------------------------------------------------------------

    def _message(self, call: Call) -> Plan:
        record = self._known(call)
        line = message_line(call)
        if not self._runtime.runs(record.id):
            raise Refusal(
                409, "invalid_state", f"agent {record.slug} is {record.phase}: it takes messages while it runs"
            )

        async def perform(cancelled: anyio.Event) -> Answer:
            return message_answer(call.id, await self._runtime.message(record.id, call.id, line, cancelled))

        return Plan(operation=Operation(op="message", agent_id=record.id), perform=perform)

    def _exec(self, call: Call) -> Plan:
        record = self._known(call)
        command, timeout = call.body.get("command"), call.body.get("timeout", EXEC_TIMEOUT)
        if not isinstance(command, list) or not command or not all(isinstance(one, str) for one in command):
            raise Refusal(422, "invalid_command", "command is a list of words")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MOST_EXEC_TIMEOUT:
            raise Refusal(422, "invalid_command", f"timeout is a number of seconds, at most {MOST_EXEC_TIMEOUT:g}")
        if not self._runtime.runs(record.id):
            raise Refusal(409, "invalid_state", f"agent {record.slug} is {record.phase}: start it first")

        async def perform(cancelled: anyio.Event) -> Answer:
            done = await self._runtime.exec(record.id, command, float(timeout), cancelled)
            if done.result == "cancelled":
                raise Refusal(499, "cancelled", "the command was killed")
            if done.result == "lost":
                raise Refusal(409, "outcome_unknown", "the agent ended while the command ran: nobody saw its end")
            more = {"timedOut": done.timed_out, "truncated": done.truncated}
            told = {"output": done.output, "exitCode": done.exit_code}
            return said(200, {**told, **{name: True for name, so in more.items() if so}})

        return Plan(operation=Operation(op="exec", agent_id=record.id), perform=perform)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def read(self, call: Call) -> Answer:
        """Raises: Refusal."""
        match call.op:
            case "health":
                return said(200, {"status": "ok"})
            case "info":
                return said(200, {**self._about, "agents": len(self._agents.records)})
            case "list":
                told = [record.told() for record in self._agents.records.values()]
                return said(200, {"agents": told, "totalCount": len(told)})
            case "show":
                return said(200, self._known(call).told())
            case "has_prompt":
                return said(200, {"hasPrompt": self._known(call).task is not None})
        record = self._known(call)
        tail = call.query.get("tail", str(LOG_LINES))
        if not tail.isascii() or not tail.isdigit():
            raise Refusal(400, "invalid_request", f"tail is a number of lines; found {tail!r:.40}")
        lines = min(int(tail[:9]), MOST_LOG_LINES)
        return Answer(status=200, body=await self._runtime.log(record.id, lines, LOG_BYTES), content_type=TEXT)

    def _known(self, call: Call) -> AgentRecord:
        record = self._agents.of(call)
        if record is None:
            raise Refusal(404, "not_found", f"this broker has no agent {call.ref} in project {call.project_id}")
        return record

    def _now(self, agent_id: str) -> AgentRecord:
        record = self._agents.get(agent_id)
        assert record is not None, "operations of one agent never overlap"
        return record

    def _found(self, call: Call) -> AgentRecord:
        agent_id = call.agent_id or call.text("agentId")
        if not agent_id or call.body.get("inlineConfig") is None:
            raise Refusal(404, "not_found", f"this broker has no agent {call.ref} in project {call.project_id}")
        return AgentRecord(id=agent_id, slug=call.ref, name=call.ref, project_id=call.project_id, phase="created")


def message_line(call: Call) -> str:
    """What the agent reads on its standard input: one line of JSON. Raises: Refusal."""
    structured = call.body.get("structured_message")
    text = structured.get("msg") if isinstance(structured, dict) else call.body.get("message")
    if not isinstance(text, str) or not text:
        raise Refusal(400, "invalid_request", "a message needs a text: `message`, or `structured_message` with `msg`")
    line: dict[str, Any] = {"id": call.id, "message": text}
    if isinstance(structured, dict):
        line["structured_message"] = structured
    if call.body.get("interrupt") is True:
        line["interrupt"] = True
    return msgspec.json.encode(line).decode() + "\n"


def message_answer(message_id: str, delivered: Delivered) -> Answer:
    match delivered.result:
        case "delivered":
            return said(200, {"delivered": True, "messageId": message_id})
        case "withdrawn":
            return refused(499, "cancelled", "the agent had not begun to read it: it was taken back")
        case "busy":
            return refused(503, "agent_busy", "the agent does not read its input", retry_after=2)
        case "silent":
            return refused(503, "keeper_silent", "the agent's keeper does not answer", retry_after=5)
        case "closed":
            return refused(409, "input_closed", "the agent closed its input: it takes no messages in this run")
        case "failed":
            told = {"exitCode": delivered.exit_code, "output": delivered.output}
            return refused(422, "message_command_failed", "the agent's messageCommand failed", details=told)
        case "ended" | "unknown":
            return refused(409, "invalid_state", "the agent ended before it read the message")


async def _answer(answer: Answer) -> Answer:
    return answer


def _run_of(call: Call) -> str:
    """A hub that names no run gets one by the dispatch: the same over all attempts."""
    return call.text("runId") or call.id
