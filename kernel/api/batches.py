"""Messages to every agent of a project, and batches in which each message names its agent."""

from __future__ import annotations

import hashlib

import msgspec

from kernel.api.edge import Edge
from kernel.api.envelopes import NewMessage
from kernel.api.exchange import Asked, Responded
from kernel.api.fanout import Fanout, Part, tell_fanout
from kernel.api.operations import operation_of
from kernel.api.preferences import LONGEST_KEY
from kernel.api.projects import known_project
from kernel.api.routes import route
from kernel.broker import Broker
from kernel.project import Project
from kernel.storage import AgentFilter, AgentView, IdempotencyKey, Keyset, Page

MOST = 1_000
"""Messages in one batch."""
PAGE = 200
"""Agents that are read at once."""


class Broadcast:
    """To all live agents of a project, however many; those that cannot take it are named in the answer."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="project.broadcast", access="user", body=NewMessage)
    async def on_post(self, req: Asked, resp: Responded, body: NewMessage, project: str) -> None:
        body.check_length()
        fanout = Fanout(self._edge, req.principal, await operation_of(req), broadcasted=True)

        async def everyone() -> list[Part]:
            views = await self._views(await known_project(self._edge, project))
            return [Part(said=body, to=view.agent.id, view=view) for view in views]

        tell_fanout(resp, await fanout.send(everyone))

    async def _views(self, project: Project) -> list[AgentView]:
        """Every agent, the eldest first."""
        storage = self._edge.storage
        brokers: dict[str, Broker | None] = {}
        views: list[AgentView] = []
        after: Keyset | None = None
        while True:
            rows = await storage.list_agents(AgentFilter(project_id=project.id), Page(limit=PAGE, after=after))
            for agent in rows[:PAGE]:
                broker_id = agent.runtime_broker_id
                if broker_id and broker_id not in brokers:
                    brokers[broker_id] = await storage.find_broker(broker_id)
                broker = brokers.get(broker_id or "")
                views.append(AgentView(agent=agent, project=project, broker=broker, waiting=frozenset()))
            if len(rows) <= PAGE:
                return views[::-1]
            after = Keyset(rows[PAGE - 1].created, rows[PAGE - 1].id)


class BatchMessage(NewMessage, frozen=True, kw_only=True):
    agent_id: str = msgspec.field(name="agentId")
    idempotency_key: str | None = msgspec.field(name="idempotencyKey", default=None)

    def problems(self) -> dict[str, str]:
        found = super().problems()
        if self.to_group:
            found["structured_message.recipient"] = "a message of a batch reaches the agent of its agentId alone"
        key = self.idempotency_key
        if key is not None and (not 0 < len(key) <= LONGEST_KEY or not key.isprintable()):
            found["idempotencyKey"] = f"expected 1 to {LONGEST_KEY} printable characters"
        return found

    def key_of(self, principal: str) -> IdempotencyKey | None:
        if self.idempotency_key is None:
            return None
        said = msgspec.json.encode(msgspec.structs.replace(self, idempotency_key=None))
        request_hash = hashlib.sha256(b"message of a batch\n" + said).hexdigest()
        return IdempotencyKey(principal=principal, key=self.idempotency_key, request_hash=request_hash)


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    messages: list[BatchMessage]

    def problems(self) -> dict[str, str]:
        if not 0 < len(self.messages) <= MOST:
            return {"messages": f"expected 1 to {MOST} messages, found {len(self.messages)}"}
        found = ((n, one.problems()) for n, one in enumerate(self.messages))
        return {f"messages[{n}].{name}": why for n, problems in found for name, why in problems.items()}


class Batch:
    """Each message to its own agent, of whichever project; to one agent in the order of the batch."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="message.batch", access="user", body=NewBatch)
    async def on_post(self, req: Asked, resp: Responded, body: NewBatch) -> None:
        for message in body.messages:
            message.check_length()
        operation = await operation_of(req)
        fanout = Fanout(self._edge, req.principal, operation)

        async def each() -> list[Part]:
            keyed = ((one, one.key_of(operation.principal)) for one in body.messages)
            return [Part(said=one, to=one.agent_id, key=key) for one, key in keyed]

        tell_fanout(resp, await fanout.send(each))
