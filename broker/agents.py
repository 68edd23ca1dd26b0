"""The agents of this broker: who they are, what their runs do, who is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.agent import AgentRecord, Ended, after_end, after_status
from broker.answer import Answer, Refusal, said
from broker.calls import Call
from broker.inbox import Changes


class Agents:
    """In memory as they are now, on disk as they were when an operation last ended."""

    def __init__(self, records: dict[str, AgentRecord], changed: Callable[[str], None]) -> None:
        self.records = records
        self._changed = changed

    def get(self, agent_id: str) -> AgentRecord | None:
        return self.records.get(agent_id)

    def put(self, record: AgentRecord) -> None:
        self.records[record.id] = record

    def drop(self, agent_id: str) -> None:
        self.records.pop(agent_id, None)

    def of(self, call: Call) -> AgentRecord | None:
        """The agent that a request is about: by its id where it names one, else by project and slug (or id)."""
        if call.agent_id is not None:
            return self.records.get(call.agent_id)
        return self.records.get(call.ref) or self.by_slug(call.project_id, call.ref)

    def by_slug(self, project_id: str, slug: str) -> AgentRecord | None:
        found = (one for one in self.records.values() if one.slug == slug and one.project_id == project_id)
        return next(found, None)

    def known(self, call: Call) -> AgentRecord:
        """Raises: Refusal."""
        record = self.of(call)
        if record is None:
            raise Refusal(404, "not_found", f"this broker has no agent {call.ref} in project {call.project_id}")
        return record

    def now(self, agent_id: str) -> AgentRecord:
        """An agent in the middle of an operation: nobody else can have removed it."""
        return self.records[agent_id]

    def told(self, agent_id: str, status: int) -> Answer:
        """The agent as it is."""
        record = self.now(agent_id)
        body: dict[str, Any] = {"agent": record.told(), "phase": record.phase}
        return said(status, {**body, "created": True} if status == 201 else body)

    def turn(self, call: Call) -> str:
        """Requests of one agent have the same."""
        record = self.of(call)
        return f"{record.project_id}/{record.slug}" if record else f"{call.project_id}/{call.ref}"

    def changes(self, agent_id: str) -> Changes:
        """What is to be written so that the disk knows what the memory knows."""
        record = self.records.get(agent_id)
        return Changes(kept=(record,)) if record else Changes(dropped=(agent_id,))

    # -- what a runtime tells ----------------------------------------------------------------------------------------

    def reported(self, agent_id: str, run_id: str, status: dict[str, Any]) -> None:
        record = self.records.get(agent_id)
        if record and record.run_id == run_id:
            self.put(after_status(record, status))
            self._changed(agent_id)

    def ended(self, agent_id: str, run_id: str, ended: Ended) -> None:
        record = self.records.get(agent_id)
        if record and record.run_id == run_id:
            self.put(after_end(record, ended))
            self._changed(agent_id)
