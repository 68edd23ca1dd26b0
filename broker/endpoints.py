"""The tunnelled endpoints: what each asks of the agents, and what it answers.

An operation is planned first, without any effect; then it is written down; then it is carried out.
"""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from broker.agents import Agents
from broker.answer import TEXT, Answer, Refusal, refused, said
from broker.calls import Call
from broker.inbox import Operation
from broker.plan import Plan, at_once
from broker.runtimes import Delivered, Runtime
from broker.settings import BrokerSettings
from broker.starts import Starts

LOG_BYTES = 512 * 1024
LOG_LINES = 1_000
MOST_LOG_LINES = 100_000
EXEC_TIMEOUT = 30.0
MOST_EXEC_TIMEOUT = 600.0


class Endpoints:
    """One method an operation. `hub` in them is the address from which the request came."""

    def __init__(self, settings: BrokerSettings, agents: Agents, runtime: Runtime, about: dict[str, Any]) -> None:
        self._agents = agents
        self._runtime = runtime
        self._about = about
        self.starts = Starts(settings, agents, runtime)

    def plan(self, call: Call, hub: str) -> Plan:
        """Raises: Refusal."""
        match call.op:
            case "create":
                return self.starts.create(call, hub)
            case "start" | "restart":
                return self.starts.start(call, hub)
            case "finalize_env":
                return self.starts.finalize_env(call, hub)
            case "stop" | "suspend":
                return self._stop(call)
            case "delete":
                return self._delete(call)
            case "message":
                return self._message(call)
            case "exec":
                return self._exec(call)
        raise Refusal(404, "not_found", f"{call.op} is no operation")

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _stop(self, call: Call) -> Plan:
        record = self._agents.of(call)
        if record is None and call.op == "stop":
            told = said(200, {"phase": "stopped"})
            operation = Operation(op="stop", agent_id=call.agent_id or call.ref)
            return Plan(operation=operation, perform=lambda _: at_once(told))
        agent_id = self._agents.known(call).id
        operation = Operation(op=call.op, agent_id=agent_id)
        return Plan(operation=operation, perform=lambda _: self.stop(agent_id, call.op))

    async def stop(self, agent_id: str, op: str) -> Answer:
        """Also for one that does not run: then its phase is all that changes."""
        ended = await self._runtime.stop(agent_id, op)
        record = self._agents.now(agent_id)
        phase = "suspended" if op == "suspend" else "stopped"
        detail = record.detail if ended is None or ended.exit_code is None else {"exitCode": ended.exit_code}
        self._agents.put(msgspec.structs.replace(record, phase=phase, activity=None, detail=detail, gathered=None))
        return self._agents.told(agent_id, 200)

    def _delete(self, call: Call) -> Plan:
        agent_id = self._agents.known(call).id
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
        record = self._agents.known(call)
        line = message_line(call)
        if not self._runtime.runs(record.id):
            raise Refusal(
                409, "invalid_state", f"agent {record.slug} is {record.phase}: it takes messages while it runs"
            )

        async def perform(cancelled: anyio.Event) -> Answer:
            return message_answer(call.id, await self._runtime.message(record.id, call.id, line, cancelled))

        return Plan(operation=Operation(op="message", agent_id=record.id), perform=perform)

    def _exec(self, call: Call) -> Plan:
        record = self._agents.known(call)
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

    def about(self) -> dict[str, Any]:
        return {**self._about, "agents": len(self._agents.records)}

    async def read(self, call: Call) -> Answer:
        """Raises: Refusal."""
        match call.op:
            case "health":
                return said(200, {"status": "ok"})
            case "info":
                return said(200, self.about())
            case "list":
                told = [record.told() for record in self._agents.records.values()]
                return said(200, {"agents": told, "totalCount": len(told)})
            case "show":
                return said(200, self._agents.known(call).told())
            case "has_prompt":
                return said(200, {"hasPrompt": self._agents.known(call).task is not None})
        record = self._agents.known(call)
        tail = call.query.get("tail", str(LOG_LINES))
        if not tail.isascii() or not tail.isdigit():
            raise Refusal(400, "invalid_request", f"tail is a number of lines; found {tail!r:.40}")
        lines = min(int(tail[:9]), MOST_LOG_LINES)
        return Answer(status=200, body=await self._runtime.log(record.id, lines, LOG_BYTES), content_type=TEXT)


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
