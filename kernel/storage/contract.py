"""The contract: named operations, each one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kernel.agent import Agent, AgentId, Report
from kernel.broker import Broker, BrokerId, Session, SessionId
from kernel.clock import Clock
from kernel.errors import Failure
from kernel.intent import Intent, IntentId
from kernel.message import Message
from kernel.node import Node, NodeId
from kernel.project import Project
from kernel.storage.intents import (
    Cancelled,
    Changed,
    ClaimRequest,
    Claims,
    End,
    Era,
    Held,
    IdempotencyKey,
    IntentFilter,
    Known,
    LaneView,
    NewIntent,
    Progress,
    PutBack,
    Recorded,
    Recording,
    Recovered,
    Repeated,
    Settled,
    Unfinished,
)
from kernel.storage.pages import Page
from kernel.storage.places import (
    AgentEdit,
    AgentFilter,
    AgentView,
    BrokerEdit,
    BrokerJoin,
    BrokerRegistration,
    ProjectEdit,
    Reaped,
    Registered,
    Released,
    ReportOutcome,
    SealedSecret,
    SessionClaim,
    SessionClaimed,
    User,
)

if TYPE_CHECKING:
    from kernel.config.settings import BusSettings
    from kernel.signals import Signals

T = TypeVar("T")


class Sql(Protocol):
    """For plugins with tables of their own; SQLAlchemy Core statements are part of the contract."""

    async def run(self, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own; rows for a SELECT or RETURNING, else none."""
        ...

    async def transaction(self, function: Callable[[Any], T]) -> T:
        """Run `function(connection)` with a SQLAlchemy connection in one transaction: all of it or nothing."""
        ...


class Nodes(Protocol):
    async def join_node(self, node: Node) -> Changed:
        """Write this node's row. A backend that knows one hub only (SQLite) marks all other nodes lost, clears
        their affinity and puts what they had in hand back to `pending`."""
        ...

    async def beat(self, node_id: NodeId, draining: bool) -> Node | None:
        """Beat; the row as it stands now, `draining` too when somebody asked for it. None when the row is gone or
        marked lost: this node must forget what it holds."""
        ...

    async def drain_node(self, node_id: NodeId) -> Node | None:
        """Ask a node to hand over what it holds: its next beat is told. None when no live node has this id. Nothing
        takes it back: a node that drains goes on draining until it ends."""
        ...

    async def remove_node(self, node_id: NodeId) -> None: ...

    async def list_nodes(self) -> list[Node]: ...

    async def era(self) -> Era:
        """The one of now; who finds that the database forgot it begins the next."""
        ...

    async def reap(self, judge: NodeId, lost_after: float, stale_after: float) -> Reaped:
        """Mark silent nodes lost; clear affinity that names them or was not renewed, by epoch; put what those
        sessions had in hand back to `pending`. A judge whose own beat is older than `lost_after` judges nobody: its
        call may have waited for an outage to end."""
        ...


class Sessions(Protocol):
    async def claim_session(self, claim: SessionClaim) -> SessionClaimed:
        """Raises: NotFound when the broker is unknown or deleted; Overtaken when the session is `direct` and somebody
        else holds the broker."""
        ...

    async def release_session(self, session: Session, code: int, sent: Sequence[IntentId]) -> Released:
        """Compare-and-clear on (node, session, epoch). `sent` are the intents whose frame had left: stamped, for
        the count of crashes when the broker comes back as another process."""
        ...

    async def renew(self, sessions: Sequence[Session]) -> tuple[SessionId, ...]:
        """Renew all in one statement; answers those that the rows no longer name: they have lost."""
        ...


class Intents(Protocol):
    async def record(self, recording: Recording) -> Recorded:
        """Commit a call before it is acknowledged. An id that exists already answers its row.

        Raises:
            IdempotencyConflict: the key, or one of the intents' own, was used for another request.
            AlreadyExists: the agent's slug is taken in its project.
            NotFound: the new agent's broker was deleted.
        """
        ...

    async def claim(self, request: ClaimRequest) -> Claims:
        """Heads of lanes only: pending, due, before their deadline, nothing unfinished before them in the lane, the
        broker not paused; messages only while their agent runs. Stamps the claim and `attempts + 1`."""
        ...

    async def recover(self, known: Known) -> Recovered:
        """Claim again what this session has in hand, or had until it ended, and of which the database lost the claim;
        tell what else differs. It waits for claims of this session that are under way, and never takes what was
        claimed since by anybody else."""
        ...

    async def in_hand(self, node_id: NodeId) -> list[Held]:
        """What the rows tell to be in this node's hands."""
        ...

    async def poll(self, node_id: NodeId) -> list[BrokerId]:
        """The brokers whose socket this node holds and for which something is pending and due: one query, so that
        no cost grows with idle connections."""
        ...

    async def endpoints_waiting(self, limit: int) -> list[Broker]:
        """Brokers that nobody holds and that have an endpoint, are not paused, and for which something is pending and
        due: messages only while their agent runs."""
        ...

    async def find_key(self, key: IdempotencyKey) -> Repeated | None:
        """What a caller's key was used for, so that a repeat is answered before anything is judged anew.

        Raises: IdempotencyConflict.
        """
        ...

    async def progress(self, steps: Sequence[Progress]) -> None: ...

    async def end(self, end: End) -> Settled:
        """Guarded by `state = in_progress`, epoch and attempt in the statement that writes. `sealed` is wiped."""
        ...

    async def insert_ended(self, intent: NewIntent, end: End) -> Settled:
        """A LOCAL call and its outcome at once. When the broker's row carries another epoch by now the intent is
        stored as the fact it is and the agent's phase is left alone."""
        ...

    async def put_back(self, back: PutBack) -> Settled: ...

    async def cancel(self, intent_id: IntentId, node_id: NodeId, by: str = "") -> Cancelled:
        """`by` whom, for its history. Raises: NotFound."""
        ...

    async def expire(self, ids: Sequence[IntentId], failure: Failure, node_id: NodeId) -> Changed:
        """`pending` → `expired` for these; one that was claimed before ends with code `outcome_unknown` instead.

        Wherever a `create` expires or is cancelled: one that never was claimed takes its agent's row with it; of one
        that was, the agent stays in phase `error` with a message that says why.
        """
        ...

    async def expire_due(self, node_id: NodeId, limit: int) -> Changed:
        """`pending` past the deadline → `expired`."""
        ...

    async def expire_unheld(self, node_id: NodeId, grace: float, limit: int) -> Changed:
        """Lifecycle intents without `hold` that never were claimed and whose broker nobody has held for `grace`."""
        ...

    async def redrive(self, node_id: NodeId, limit: int) -> Changed:
        """`in_progress` under an epoch that its broker's row no longer carries → `pending`. Messages that wait for an
        agent which is gone → `cancelled`: they were written beside its end, were too many to end with it, or a sweep
        ended its creation."""
        ...

    async def find_intents(self, ids: Sequence[IntentId]) -> list[Intent]: ...

    async def follow(self, ids: Sequence[IntentId]) -> list[tuple[Intent, Agent | None]]:
        """As `find_intents`, each with its agent as it is now: for who waits for an end, in one question."""
        ...

    async def list_intents(self, where: IntentFilter, page: Page) -> list[Intent]: ...

    async def count_intents(self, where: IntentFilter) -> int: ...

    async def explain(self, intent_id: IntentId) -> LaneView | None: ...

    async def unfinished(self) -> Unfinished: ...

    async def prune(self, retention: float, limit: int) -> int:
        """Delete ended intents with their history, used nonces, idempotency keys (24 h), join tokens and deleted
        agents past their time; answers how many rows went, so that the sweep goes on while there are more."""
        ...


class Agents(Protocol):
    async def find_agent(self, ref: str, project_id: str | None = None) -> AgentView | None:
        """By id, or by slug within a project. By id a deleted one is found too; a malformed id finds nothing."""
        ...

    async def find_agents(self, refs: Sequence[str], project_id: str | None = None) -> dict[str, AgentView]:
        """The same for many, by the references with which they were asked for; what names nothing is left out."""
        ...

    async def list_agents(self, where: AgentFilter, page: Page) -> list[Agent]: ...

    async def count_agents(self, where: AgentFilter) -> int: ...

    async def edit_agent(self, edit: AgentEdit) -> Agent:
        """Raises: NotFound, VersionConflict."""
        ...

    async def report(self, report: Report) -> ReportOutcome:
        """Apply `kernel.agent.applied` to the row by compare-and-set on its version. With `report.broker_id` only an
        agent of that broker is found."""
        ...

    async def quiet(self, agent_id: AgentId, seconds: float) -> bool:
        """No intent of this agent is unfinished, and none ended less than `seconds` ago."""
        ...

    async def list_messages(
        self,
        recipient_id: str,
        page: Page,
        *,
        unread: bool = False,
        project_id: str | None = None,
        agent_id: str | None = None,
        type: str | None = None,
    ) -> list[Message]: ...

    async def count_messages(
        self,
        recipient_id: str,
        *,
        unread: bool = False,
        project_id: str | None = None,
        agent_id: str | None = None,
        type: str | None = None,
    ) -> int: ...

    async def add_message(self, message: Message) -> Message:
        """A message to a user: `dispatch_state` is `none`, and nothing is ever dispatched."""
        ...

    async def mark_read(self, message_id: str, recipient_id: str) -> bool: ...


class Projects(Protocol):
    async def create_project(self, project: Project, key: IdempotencyKey | None) -> tuple[Project, Repeated | None]:
        """Raises: AlreadyExists when the slug is taken, IdempotencyConflict."""
        ...

    async def find_project(self, ref: str) -> Project | None:
        """By id or slug."""
        ...

    async def list_projects(self, page: Page) -> list[Project]: ...

    async def count_projects(self) -> int: ...

    async def edit_project(self, edit: ProjectEdit) -> Project:
        """Its slug stays as it is. Raises: NotFound."""
        ...

    async def delete_project(self, project_id: str) -> None:
        """Raises: NotFound; InvalidState while it has live agents."""
        ...

    async def list_providers(self, project_id: str) -> list[Broker]:
        """Brokers that may run this project's agents: its providers, and those with `auto_provide`."""
        ...


class Brokers(Protocol):
    async def register_broker(self, registration: BrokerRegistration) -> Registered:
        """Raises: Forbidden when the name or id is another user's broker; IdempotencyConflict; NotFound when the broker
        that the key registered was deleted since."""
        ...

    async def join_broker(self, join: BrokerJoin) -> Broker:
        """Swap a join token for a secret, once. The session that stands on the old secret is cleared, so that its next
        renewal tells its node; the answer still names it. Raises: InvalidJoinToken, ExpiredJoinToken."""
        ...

    async def find_broker(self, ref: str) -> Broker | None:
        """By id, slug or name; deleted ones are not found."""
        ...

    async def list_brokers(self, page: Page) -> list[Broker]: ...

    async def count_brokers(self) -> int: ...

    async def edit_broker(self, edit: BrokerEdit) -> Broker:
        """Raises: NotFound."""
        ...

    async def delete_broker(self, broker_id: BrokerId) -> None:
        """Mark it deleted and revoke its secrets. Raises: NotFound; InvalidState while it has live agents."""
        ...

    async def broker_secrets(self, broker_id: BrokerId) -> list[SealedSecret]:
        """Every secret that is still good, newest first; none when the broker is unknown or deleted."""
        ...

    async def use_nonce(self, broker_id: BrokerId, nonce: str) -> bool:
        """Remember a nonce for ten minutes; False when it was used before, on any hub."""
        ...


class Storage(Nodes, Sessions, Intents, Agents, Projects, Brokers, Protocol):
    """One backend, open and migrated."""

    @property
    def name(self) -> str: ...

    @property
    def can_signal(self) -> bool:
        """Whether nodes can reach each other through it; without, there is exactly one hub."""
        ...

    def open_signals(self, node_id: NodeId, clock: Clock, settings: BusSettings) -> Signals:
        """The way in which this node wakes others and is woken; the hub runs it."""
        ...

    @property
    def sql(self) -> Sql: ...

    @property
    def last_batch(self) -> float:
        """How many writes the last commit held."""
        ...

    @property
    def breaks(self) -> int:
        """How many connections broke, or did not answer in time, since the start. Afterwards rows may tell less than
        is true for a while."""
        ...

    async def ping(self) -> None:
        """Answer, or raise StorageUnavailable: for readiness."""
        ...

    async def schema_version(self) -> str: ...

    async def statement_count(self) -> int:
        """How many writing transactions were committed since the start: for proofs that a path writes nothing."""
        ...

    async def ensure_user(self, user: User) -> None: ...

    async def close(self) -> None: ...
