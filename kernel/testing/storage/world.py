"""What a storage contract is tried on: a node, a project, a broker that it holds, agents, and intents about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from kernel.agent import Agent, AgentChange, AgentId, Phase
from kernel.broker import Broker, BrokerId, Provider, Session, SessionId
from kernel.clock import SYSTEM
from kernel.errors import Failure
from kernel.intent import Intent, IntentId, Op, State, lane_of
from kernel.message import Message
from kernel.node import Node, NodeId
from kernel.project import Project
from kernel.storage import (
    AgentView,
    BrokerRegistration,
    ClaimRequest,
    Claims,
    End,
    NewIntent,
    PutBack,
    Recording,
    SessionClaim,
    SessionClaimed,
    Settled,
    Storage,
)

ALL = frozenset(Op)
FAILURE = Failure(code="broker_timeout", message="tried", status=504)


def uuid() -> str:
    return SYSTEM.uuid7()


class World:
    """Everything that a test needs to say one sentence about one operation."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.node = NodeId(uuid())
        self.project: Project
        self.broker: Broker
        self.session: Session

    @classmethod
    async def built(cls, storage: Storage) -> World:
        world = cls(storage)
        now = SYSTEM.now()
        await storage.join_node(Node(id=world.node, started_at=now, beat_at=now, version="test"))
        await storage.era()
        world.project = await world.new_project()
        world.broker = await world.new_broker()
        world.session = (await world.connect()).session
        return world

    async def another_node(self) -> NodeId:
        """A second node, whose beat is of now. Its row is a copy: where only one hub may join, no other can."""
        other = NodeId(uuid())
        copy = "INSERT INTO hub_nodes (id, started_at, beat_at, version, draining) SELECT :other, started_at, beat_at, "
        copied = sa.text(copy + "version, draining FROM hub_nodes WHERE id = :node")
        await self.storage.sql.run(copied, {"other": other, "node": self.node})
        assert await self.storage.beat(other, draining=False)
        return other

    # -- things that exist ---------------------------------------------------------------------------------------

    async def new_project(self) -> Project:
        slug = f"project-{uuid()}"
        made, _ = await self.storage.create_project(Project(id=uuid(), name=slug, slug=slug), None)
        return made

    async def new_broker(self, **more: Any) -> Broker:
        return (await self.storage.register_broker(self.registration(**more))).broker

    def registration(self, **more: Any) -> BrokerRegistration:
        broker_id = uuid()
        values = {
            "broker_id": BrokerId(broker_id),
            "name": f"broker {broker_id}",
            "slug": f"broker-{broker_id}",
            "created_by": "user:test",
            "token_id": uuid(),
            "token_hash": uuid(),
            "token_lives": 3600.0,
        }
        return BrokerRegistration(**{**values, **more})

    async def new_agent(self, phase: Phase = Phase.RUNNING, **more: Any) -> Agent:
        agent = self.agent(phase, **more)
        await self.storage.record(Recording(agent=agent))
        return await self.read_agent(agent.id)

    def agent(self, phase: Phase = Phase.CREATED, **more: Any) -> Agent:
        agent_id = uuid()
        values: dict[str, Any] = {
            "id": AgentId(agent_id),
            "slug": f"agent-{agent_id}",
            "name": f"agent {agent_id}",
            "project_id": self.project.id,
            "phase": phase,
            "runtime_broker_id": self.broker.id,
        }
        return Agent(**{**values, **more})

    async def view(self, agent_id: str) -> AgentView:
        view = await self.storage.find_agent(agent_id)
        assert view is not None
        return view

    async def read_agent(self, agent_id: str) -> Agent:
        return (await self.view(agent_id)).agent

    async def read_broker(self) -> Broker:
        broker = await self.storage.find_broker(self.broker.id)
        assert broker is not None
        return broker

    # -- sessions ------------------------------------------------------------------------------------------------

    async def connect(self, **more: Any) -> SessionClaimed:
        """A socket of the broker comes to this node; it becomes the world's session."""
        claimed = await self.storage.claim_session(self.session_claim(**more))
        self.session = claimed.session
        return claimed

    def session_claim(self, **more: Any) -> SessionClaim:
        values: dict[str, Any] = {
            "broker_id": self.broker.id,
            "node_id": self.node,
            "session_id": SessionId(uuid()),
            "capabilities": ("dedupe",),
        }
        return SessionClaim(**{**values, **more})

    async def disconnect(self, code: int = 1006, sent: Iterable[str] = ()) -> None:
        released = await self.storage.release_session(self.session, code, [IntentId(one) for one in sent])
        assert released.cleared

    # -- intents -------------------------------------------------------------------------------------------------

    def intent(self, op: Op, agent: Agent, **more: Any) -> NewIntent:
        values: dict[str, Any] = {
            "id": IntentId(uuid()),
            "op": op,
            "lane": lane_of(op),
            "broker_id": BrokerId(agent.runtime_broker_id or self.broker.id),
            "agent_id": agent.id,
            "agent_slug": agent.slug,
            "project_id": agent.project_id,
            "deadline_in": 900.0,
            "route": "forward",
            "principal": "user:test",
            "request_id": uuid(),
            "node_id": self.node,
        }
        new = NewIntent(**{**values, **more})
        if op is Op.MESSAGE and new.message is None:
            new = msgspec.structs.replace(new, message=self.message(new.id, agent))
        return new

    def message(self, message_id: str, agent: Agent, **more: Any) -> Message:
        values: dict[str, Any] = {
            "id": message_id,
            "project_id": agent.project_id,
            "sender": "user:test",
            "recipient": f"agent:{agent.slug}",
            "recipient_id": agent.id,
            "recipient_agent_id": agent.id,
            "msg": "hello",
        }
        return Message(**{**values, **more})

    async def record(self, op: Op, agent: Agent, **more: Any) -> Intent:
        recorded = await self.storage.record(Recording(intents=(self.intent(op, agent, **more),)))
        return recorded.intents[0]

    async def creation(self, **more: Any) -> tuple[Agent, Intent]:
        """An agent's row and its `create`, in one commit."""
        agent = self.agent()
        provider = Provider(project_id=self.project.id, broker_id=self.broker.id, broker_name=self.broker.name)
        new = self.intent(Op.CREATE, agent, **more)
        recorded = await self.storage.record(Recording(intents=(new,), agent=agent, provider=provider))
        return agent, recorded.intents[0]

    async def claim(self, limit: int = 100, session: Session | None = None, **more: Any) -> Claims:
        request = ClaimRequest(session=session or self.session, limit=limit, ops=more.pop("ops", ALL), **more)
        return await self.storage.claim(request)

    async def claimed(self, op: Op, agent: Agent, **more: Any) -> Intent:
        """Recorded, and in this session's hands."""
        intent = await self.record(op, agent, **more)
        claims = await self.claim()
        return next(one for one in claims.intents if one.id == intent.id)

    async def read(self, intent_id: str) -> Intent:
        found = await self.storage.find_intents([IntentId(intent_id)])
        assert found, f"intent {intent_id} is gone"
        return found[0]

    def ending(self, intent: Intent | NewIntent, **more: Any) -> End:
        values: dict[str, Any] = {
            "intent_id": intent.id,
            "op": intent.op,
            "state": State.DONE,
            "session": self.session,
            "attempt": max(1, intent.attempts),
            "reason": "answered",
            "agent_id": AgentId(intent.agent_id),
        }
        return End(**{**values, **more})

    async def end(self, intent: Intent, **more: Any) -> Settled:
        return await self.storage.end(self.ending(intent, **more))

    async def put_back(self, intent: Intent, **more: Any) -> Settled:
        values: dict[str, Any] = {
            "intent_id": intent.id,
            "op": intent.op,
            "session": self.session,
            "attempt": intent.attempts,
            "reason": "later",
        }
        return await self.storage.put_back(PutBack(**{**values, **more}))

    async def runs(self, agent: Agent) -> Agent:
        """The agent, after a start that ended with `running`."""
        start = await self.claimed(Op.START, agent)
        settled = await self.end(start, change=AgentChange(phase=Phase.RUNNING, run_id=uuid()))
        assert settled.agent is not None
        return settled.agent


def ids(intents: Iterable[Intent]) -> list[str]:
    return [intent.id for intent in intents]
