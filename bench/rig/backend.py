"""A backend with no hub around it: one node, one broker that it holds, agents that run."""

from __future__ import annotations

import anyio
import msgspec

from bench.rig.commits import TEXT
from kernel import (
    SYSTEM,
    Agent,
    AgentId,
    BrokerRegistration,
    ClaimRequest,
    End,
    IntentId,
    Message,
    NewIntent,
    Node,
    NodeId,
    Op,
    Phase,
    Project,
    Recording,
    Session,
    SessionClaim,
    SessionId,
    State,
    Storage,
    lane_of,
)


class World:
    """One hub, one broker that it holds, agents that run."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.node = NodeId(SYSTEM.uuid4())
        self.session: Session
        self.project = SYSTEM.uuid4()
        self.agents: list[Agent] = []

    async def build(self, agents: int) -> None:
        now = SYSTEM.now()
        await self.storage.join_node(Node(id=self.node, started_at=now, beat_at=now, version="bench"))
        await self.storage.create_project(Project(id=self.project, name="bench", slug="bench"), None)
        registered = await self.storage.register_broker(
            BrokerRegistration(
                broker_id=SYSTEM.uuid4(),  # type: ignore[arg-type]
                name="bench",
                slug="bench",
                created_by="bench",
                token_id=SYSTEM.uuid4(),
                token_hash=SYSTEM.uuid4(),
                token_lives=60.0,
            )
        )
        claim = SessionClaim(broker_id=registered.broker.id, node_id=self.node, session_id=SessionId(SYSTEM.uuid4()))
        self.session = (await self.storage.claim_session(claim)).session
        for number in range(agents):
            agent = Agent(
                id=AgentId(SYSTEM.uuid7()),
                slug=f"agent-{number}",
                name=f"agent {number}",
                project_id=self.project,
                phase=Phase.RUNNING,
                runtime_broker_id=registered.broker.id,
            )
            await self.storage.record(Recording(agent=agent))
            self.agents.append(agent)

    def message(self, number: int) -> NewIntent:
        agent = self.agents[number % len(self.agents)]
        intent = self.intent(Op.MESSAGE, agent)
        said = Message(id=intent.id, project_id=self.project, sender="bench", recipient=agent.slug, msg=TEXT)
        return msgspec.structs.replace(intent, message=said)

    def intent(self, op: Op, agent: Agent) -> NewIntent:
        return NewIntent(
            id=IntentId(SYSTEM.uuid7()),
            op=op,
            lane=lane_of(op),
            broker_id=self.session.broker_id,
            agent_id=agent.id,
            agent_slug=agent.slug,
            project_id=self.project,
            deadline_in=86_400.0,
            route="forward",
            principal="user:bench",
            request_id="bench",
            node_id=self.node,
        )

    async def cycle(self, limit: int) -> int:
        """Claim what waits and end it; how many there were."""
        claims = await self.storage.claim(ClaimRequest(session=self.session, limit=limit, ops=frozenset(Op)))
        async with anyio.create_task_group() as tasks:
            for intent in claims.intents:
                tasks.start_soon(
                    self.storage.end,
                    End(
                        intent_id=intent.id,
                        op=intent.op,
                        state=State.DONE,
                        session=self.session,
                        attempt=intent.attempts,
                        reason="answered",
                        agent_id=AgentId(intent.agent_id),
                    ),
                )
        return len(claims.intents)
