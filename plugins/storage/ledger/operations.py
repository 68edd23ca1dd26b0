"""The storage contract, each operation one function of the ledger in one transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from kernel import (
    Agent,
    AgentEdit,
    AgentFilter,
    AgentId,
    AgentView,
    Broker,
    BrokerEdit,
    BrokerId,
    BrokerJoin,
    BrokerRegistration,
    Cancelled,
    Changed,
    ClaimRequest,
    Claims,
    End,
    Era,
    Failure,
    Held,
    IdempotencyKey,
    Intent,
    IntentFilter,
    IntentId,
    Known,
    LaneView,
    Message,
    NewIntent,
    Node,
    NodeId,
    Page,
    Progress,
    Project,
    ProjectEdit,
    PutBack,
    Reaped,
    Recorded,
    Recording,
    Recovered,
    Registered,
    Released,
    Repeated,
    Report,
    ReportOutcome,
    SealedSecret,
    Session,
    SessionClaim,
    SessionClaimed,
    SessionId,
    Settled,
    Unfinished,
    User,
)
from plugins.storage.ledger import (
    agents,
    births,
    brokers,
    claims,
    ends,
    eras,
    inbox,
    keys,
    lookups,
    nodes,
    projects,
    pruning,
    recovering,
    reports,
    sessions,
    sweeping,
    users,
)
from plugins.storage.ledger.query import Tx

T = TypeVar("T")


class Operations(ABC):
    """What a backend does with a function of the ledger is its own affair: in which thread, on which connection."""

    @abstractmethod
    async def _write(self, function: Callable[[Tx], T]) -> T:
        """Run it in a transaction of its own, committed when this returns."""

    @abstractmethod
    async def _read(self, function: Callable[[Tx], T]) -> T:
        """Run it where nothing is written."""

    # -- nodes ---------------------------------------------------------------------------------------------------

    async def join_node(self, node: Node) -> Changed:
        return await self._write(lambda tx: nodes.join_node(tx, node))

    async def beat(self, node_id: NodeId, draining: bool) -> Node | None:
        return await self._write(lambda tx: nodes.beat(tx, node_id, draining))

    async def drain_node(self, node_id: NodeId) -> Node | None:
        return await self._write(lambda tx: nodes.drain_node(tx, node_id))

    async def remove_node(self, node_id: NodeId) -> None:
        await self._write(lambda tx: nodes.remove_node(tx, node_id))

    async def list_nodes(self) -> list[Node]:
        return await self._read(nodes.list_nodes)

    async def era(self) -> Era:
        return await self._write(eras.era)

    async def reap(self, judge: NodeId, lost_after: float, stale_after: float) -> Reaped:
        return await self._write(lambda tx: sessions.reap(tx, judge, lost_after, stale_after))

    # -- sessions ------------------------------------------------------------------------------------------------

    async def claim_session(self, claim: SessionClaim) -> SessionClaimed:
        return await self._write(lambda tx: sessions.claim_session(tx, claim))

    async def release_session(self, session: Session, code: int, sent: Sequence[IntentId]) -> Released:
        return await self._write(lambda tx: sessions.release_session(tx, session, code, sent))

    async def renew(self, held: Sequence[Session]) -> tuple[SessionId, ...]:
        return (await self._write(lambda tx: sessions.renew(tx, held))).lost

    # -- intents -------------------------------------------------------------------------------------------------

    async def record(self, recording: Recording) -> Recorded:
        return await self._write(lambda tx: births.record(tx, recording))

    async def claim(self, request: ClaimRequest) -> Claims:
        return await self._write(lambda tx: claims.claim(tx, request))

    async def recover(self, known: Known) -> Recovered:
        return await self._write(lambda tx: recovering.recover(tx, known))

    async def in_hand(self, node_id: NodeId) -> list[Held]:
        return await self._read(lambda tx: recovering.in_hand(tx, node_id))

    async def poll(self, node_id: NodeId) -> list[BrokerId]:
        return await self._read(lambda tx: claims.poll(tx, node_id))

    async def endpoints_waiting(self, limit: int) -> list[Broker]:
        return await self._read(lambda tx: claims.endpoints_waiting(tx, limit))

    async def find_key(self, key: IdempotencyKey) -> Repeated | None:
        return await self._read(lambda tx: keys.find_key(tx, key))

    async def progress(self, steps: Sequence[Progress]) -> None:
        await self._write(lambda tx: claims.progress(tx, steps))

    async def end(self, end: End) -> Settled:
        return await self._write(lambda tx: ends.end(tx, end))

    async def insert_ended(self, intent: NewIntent, end: End) -> Settled:
        return await self._write(lambda tx: ends.insert_ended(tx, intent, end))

    async def put_back(self, back: PutBack) -> Settled:
        return await self._write(lambda tx: ends.put_back(tx, back))

    async def cancel(self, intent_id: IntentId, node_id: NodeId, by: str = "") -> Cancelled:
        return await self._write(lambda tx: ends.cancel(tx, intent_id, node_id, by))

    async def expire(self, ids: Sequence[IntentId], failure: Failure, node_id: NodeId) -> Changed:
        return await self._write(lambda tx: sweeping.expire(tx, ids, failure, node_id))

    async def expire_due(self, node_id: NodeId, limit: int) -> Changed:
        return await self._write(lambda tx: sweeping.expire_due(tx, node_id, limit))

    async def expire_unheld(self, node_id: NodeId, grace: float, limit: int) -> Changed:
        return await self._write(lambda tx: sweeping.expire_unheld(tx, node_id, grace, limit))

    async def redrive(self, node_id: NodeId, limit: int) -> Changed:
        return await self._write(lambda tx: sweeping.redrive(tx, node_id, limit))

    async def find_intents(self, ids: Sequence[IntentId]) -> list[Intent]:
        return await self._read(lambda tx: lookups.find_intents(tx, ids))

    async def follow(self, ids: Sequence[IntentId]) -> list[tuple[Intent, Agent | None]]:
        return await self._read(lambda tx: lookups.follow(tx, ids))

    async def list_intents(self, where: IntentFilter, page: Page) -> list[Intent]:
        return await self._read(lambda tx: lookups.list_intents(tx, where, page))

    async def count_intents(self, where: IntentFilter) -> int:
        return await self._read(lambda tx: lookups.count_intents(tx, where))

    async def explain(self, intent_id: IntentId) -> LaneView | None:
        return await self._read(lambda tx: lookups.explain(tx, intent_id))

    async def unfinished(self) -> Unfinished:
        return await self._read(lookups.unfinished)

    async def prune(self, retention: float, limit: int) -> int:
        return await self._write(lambda tx: pruning.prune(tx, retention, limit))

    # -- agents and messages -------------------------------------------------------------------------------------

    async def find_agent(self, ref: str, project_id: str | None = None) -> AgentView | None:
        return await self._read(lambda tx: agents.find_agent(tx, ref, project_id))

    async def find_agents(self, refs: Sequence[str], project_id: str | None = None) -> dict[str, AgentView]:
        return await self._read(lambda tx: agents.find_agents(tx, refs, project_id))

    async def list_agents(self, where: AgentFilter, page: Page) -> list[Agent]:
        return await self._read(lambda tx: agents.list_agents(tx, where, page))

    async def count_agents(self, where: AgentFilter) -> int:
        return await self._read(lambda tx: agents.count_agents(tx, where))

    async def edit_agent(self, edit: AgentEdit) -> Agent:
        return await self._write(lambda tx: agents.edit_agent(tx, edit))

    async def report(self, report: Report) -> ReportOutcome:
        return await self._write(lambda tx: reports.report(tx, report))

    async def quiet(self, agent_id: AgentId, seconds: float) -> bool:
        return await self._read(lambda tx: reports.quiet(tx, agent_id, seconds))

    async def list_messages(
        self,
        recipient_id: str,
        page: Page,
        *,
        unread: bool = False,
        project_id: str | None = None,
        agent_id: str | None = None,
        type: str | None = None,
    ) -> list[Message]:
        filters = {"project_id": project_id, "agent_id": agent_id, "type": type}
        return await self._read(lambda tx: inbox.list_messages(tx, recipient_id, page, unread, filters))

    async def count_messages(
        self,
        recipient_id: str,
        *,
        unread: bool = False,
        project_id: str | None = None,
        agent_id: str | None = None,
        type: str | None = None,
    ) -> int:
        filters = {"project_id": project_id, "agent_id": agent_id, "type": type}
        return await self._read(lambda tx: inbox.count_messages(tx, recipient_id, unread, filters))

    async def add_message(self, message: Message) -> Message:
        return await self._write(lambda tx: inbox.add_message(tx, message))

    async def mark_read(self, message_id: str, recipient_id: str) -> bool:
        return await self._write(lambda tx: inbox.mark_read(tx, message_id, recipient_id))

    # -- projects ------------------------------------------------------------------------------------------------

    async def create_project(self, project: Project, key: IdempotencyKey | None) -> tuple[Project, Repeated | None]:
        return await self._write(lambda tx: projects.create_project(tx, project, key))

    async def find_project(self, ref: str) -> Project | None:
        return await self._read(lambda tx: projects.find_project(tx, ref))

    async def list_projects(self, page: Page) -> list[Project]:
        return await self._read(lambda tx: projects.list_projects(tx, page))

    async def count_projects(self) -> int:
        return await self._read(projects.count_projects)

    async def edit_project(self, edit: ProjectEdit) -> Project:
        return await self._write(lambda tx: projects.edit_project(tx, edit))

    async def delete_project(self, project_id: str) -> None:
        await self._write(lambda tx: projects.delete_project(tx, project_id))

    async def list_providers(self, project_id: str) -> list[Broker]:
        return await self._read(lambda tx: projects.list_providers(tx, project_id))

    # -- brokers and people --------------------------------------------------------------------------------------

    async def register_broker(self, registration: BrokerRegistration) -> Registered:
        return await self._write(lambda tx: brokers.register_broker(tx, registration))

    async def join_broker(self, join: BrokerJoin) -> Broker:
        return await self._write(lambda tx: brokers.join_broker(tx, join))

    async def find_broker(self, ref: str) -> Broker | None:
        return await self._read(lambda tx: brokers.find_broker(tx, ref))

    async def list_brokers(self, page: Page) -> list[Broker]:
        return await self._read(lambda tx: brokers.list_brokers(tx, page))

    async def count_brokers(self) -> int:
        return await self._read(brokers.count_brokers)

    async def edit_broker(self, edit: BrokerEdit) -> Broker:
        return await self._write(lambda tx: brokers.edit_broker(tx, edit))

    async def delete_broker(self, broker_id: BrokerId) -> None:
        await self._write(lambda tx: brokers.delete_broker(tx, broker_id))

    async def broker_secrets(self, broker_id: BrokerId) -> list[SealedSecret]:
        return await self._read(lambda tx: brokers.broker_secrets_of(tx, broker_id))

    async def use_nonce(self, broker_id: BrokerId, nonce: str) -> bool:
        return await self._write(lambda tx: brokers.use_nonce(tx, broker_id, nonce))

    async def ensure_user(self, user: User) -> None:
        await self._write(lambda tx: users.ensure_user(tx, user))
