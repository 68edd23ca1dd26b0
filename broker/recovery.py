"""Finds out what became of an operation whose broker died at work, and finishes or undoes it."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from broker.agent import AgentRecord, Ended, after_end
from broker.agents import Agents
from broker.answer import Answer, refused
from broker.calls import STARTS
from broker.endpoints import Endpoints, message_answer
from broker.inbox import Operation
from broker.runtimes import Runtime

_LIVELY = frozenset({"starting", "running", "stopping"})


class Recovery:
    """Looks at effects, not at what was written about them: by run id and keeper."""

    def __init__(self, agents: Agents, runtime: Runtime, endpoints: Endpoints) -> None:
        self._agents = agents
        self._runtime = runtime
        self._endpoints = endpoints

    async def settle(self, dispatch_id: str, operation: Operation) -> Answer | None:
        """The answer of an operation that took effect, also after it was finished here; None: nothing did."""
        if operation.op in STARTS:
            return await self._start(operation)
        await self.adopt(operation.agent_id)
        match operation.op:
            case "stop" | "suspend":
                known = self._agents.get(operation.agent_id)
                return await self._endpoints.stop(operation.agent_id, operation.op) if known else None
            case "delete":
                return await self._endpoints.delete(operation.agent_id, operation.query)
            case "message":
                asked = await self._runtime.message(operation.agent_id, dispatch_id, None, anyio.Event())
                told = asked.result in ("delivered", "failed")
                return message_answer(dispatch_id, asked) if told else None
        return refused(409, "outcome_unknown", "the broker died while the command ran: it is not run again")

    async def _start(self, operation: Operation) -> Answer | None:
        record = self._agents.get(operation.agent_id)
        run = await self._runtime.find(operation.agent_id, operation.run_id or "")
        if run is None or record is None:
            await self._undo(operation, record)
            return None
        begun: dict[str, Any] = {"run_id": run.run_id, "gathered": None}
        if operation.config is not None:
            begun |= {"config": operation.config, "task": operation.task}
        self._agents.put(msgspec.structs.replace(record, phase="starting", activity=None, detail={}, **begun))
        if run.ended:
            self._agents.ended(record.id, run.run_id, run.ended)
        return self._endpoints.starts.started(record.id, 200 if operation.op in ("start", "restart") else 201)

    async def _undo(self, operation: Operation, record: AgentRecord | None) -> None:
        if operation.op == "create":
            self._agents.drop(operation.agent_id)
            await self._runtime.remove(operation.agent_id, files=True)
        elif record:
            await self.adopt(record.id)

    async def adopt(self, agent_id: str) -> None:
        """Find the run of an agent again; one that ended meanwhile has ended."""
        record = self._agents.get(agent_id)
        if record is None or record.run_id is None or self._runtime.runs(agent_id):
            return
        run = await self._runtime.find(agent_id, record.run_id)
        if run and run.ended is None:
            self._agents.put(msgspec.structs.replace(record, phase="running"))
        elif record.phase in _LIVELY:
            lost = Ended(exit_code=None, tail="what became of its run is not known: its state is gone")
            self._agents.put(after_end(record, run.ended if run and run.ended else lost))
