"""What the broker tells the hub unasked: heartbeats, the status of agents, progress of operations."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import anyio

from broker.agent import AgentRecord
from kernel import wire

_GATHER = 0.1
"""Seconds between reports of one agent that prints status after status: the last one counts."""
_STATES = 500
"""Agents in one heartbeat: more would not fit a frame."""
_STEPS = {"stop": "stopping", "suspend": "stopping", "delete": "stopping"}


class Hearer(Protocol):
    """The session that reports go to."""

    def send(self, frame: wire.Frame) -> None: ...


class Reporter:
    """Reports go to the newest session. What is lost with a socket is told again on the next one."""

    def __init__(self, records: Mapping[str, AgentRecord], heartbeat: float) -> None:
        self._records = records
        self._heartbeat = heartbeat
        self._hearer: Hearer | None = None
        self._marked: dict[str, None] = {}
        self._held: Counter[str] = Counter()
        self._arrived = anyio.Event()

    def attach(self, hearer: Hearer) -> None:
        """A new session: how everything stands, and what a lost socket may have swallowed."""
        self._hearer = hearer
        self.beat()
        for record in self._records.values():
            if record.activity or record.detail:
                self.mark(record.id)

    def detach(self, hearer: Hearer) -> None:
        if self._hearer is hearer:
            self._hearer = None

    def mark(self, agent_id: str) -> None:
        """Its status changed: tell it soon, but not before the answer of an operation that is under way."""
        self._marked[agent_id] = None
        self._arrived.set()

    @contextmanager
    def held(self, agent_id: str) -> Iterator[None]:
        """While an operation is under way its answer says how the agent is."""
        self._held[agent_id] += 1
        try:
            yield
        finally:
            self._held[agent_id] -= 1
            if not self._held[agent_id]:
                del self._held[agent_id]
            self._arrived.set()

    def holds(self, agent_id: str) -> bool:
        """Whether an operation on it is under way."""
        return agent_id in self._held

    def progress(self, agent_id: str, dispatch_id: str, op: str) -> None:
        """An operation is still being worked at."""
        record = self._records.get(agent_id)
        if record:
            told = {**_state(record), "phase": _STEPS.get(op, record.phase), "dispatchId": dispatch_id}
            self._send("agent_status", {**told, "timestamp": int(time.time())})

    def beat(self) -> None:
        """Phase and run of every agent."""
        states = [_state(record) for record in self._records.values() if record.id not in self._held]
        running = sum(1 for record in self._records.values() if record.phase == "running")
        load = round(100 * os.getloadavg()[0] / (os.cpu_count() or 1), 1)
        told = {"timestamp": int(time.time()), "activeAgents": running, "cpuPercent": load}
        for n in range(0, max(1, len(states)), _STATES):
            self._send("heartbeat", {**told, "agentStates": states[n : n + _STATES]})

    async def keep_beating(self) -> None:
        while True:
            await anyio.sleep(self._heartbeat)
            self.beat()

    async def run(self) -> None:
        """Tell what was marked."""
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            for agent_id in [one for one in self._marked if self._hearer and one not in self._held]:
                del self._marked[agent_id]
                record = self._records.get(agent_id)
                if record:
                    self._send("agent_status", _status(record))
            await anyio.sleep(_GATHER)

    def _send(self, event: str, payload: dict[str, Any]) -> None:
        if self._hearer:
            self._hearer.send(wire.Event(event=event, payload=payload))


def _state(record: AgentRecord) -> dict[str, Any]:
    told = {
        "agentId": record.id,
        "slug": record.slug,
        "projectId": record.project_id,
        "runId": record.run_id,
        "phase": record.phase,
        "activity": record.activity,
    }
    return {name: value for name, value in told.items() if value is not None}


def _status(record: AgentRecord) -> dict[str, Any]:
    told = {**_state(record), "timestamp": int(time.time())}
    return {**told, "detail": record.detail} if record.detail else told
