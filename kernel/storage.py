"""What the kernel asks of a storage backend: named operations, each one transaction.

Instants in answers are the database's. Spans in questions are seconds, added to the database's own now, so that no
hub's wall clock decides anything. An operation that changes an intent's state writes the transition in the same
transaction and returns it. Whoever calls twice with the same argument after a broken connection gets the same end.

Every operation may raise `StorageUnavailable`; other failures are named where they occur.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import msgspec

from kernel.agent import Agent, AgentChange, AgentId, Report
from kernel.broker import Broker, BrokerId, Epoch, Kind, Provider, Session, SessionId
from kernel.clock import Clock, Instant
from kernel.errors import Failure
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.message import Message
from kernel.node import Node, NodeId
from kernel.project import Project
from kernel.transition import Transition

if TYPE_CHECKING:
    from kernel.config.settings import BusSettings
    from kernel.signals import Signals

T = TypeVar("T")


# -- pages --------------------------------------------------------------------------------------------------


class Keyset(msgspec.Struct, frozen=True):
    """Where a page begins: after this row, newest first by (created, id)."""

    created: Instant
    id: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a list, and from where. A backend reads `limit + 1` rows to know whether more follow."""

    limit: int = 50
    after: Keyset | None = None


# -- intents ------------------------------------------------------------------------------------------------


class IdempotencyKey(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's key with the hash of method, path and body: kept 24 h."""

    principal: str
    key: str
    request_hash: str


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """The key was used before for the same request: wait for this intent, or give this answer."""

    intent_id: IntentId | None
    status: int | None
    answer: bytes | None


class NewIntent(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded. `claim` is set for work that is in this node's hands already (LOCAL, then recorded)."""

    id: IntentId
    op: Op
    lane: Lane
    broker_id: BrokerId
    agent_id: AgentId
    agent_slug: str
    project_id: str
    deadline_in: float
    deadline_at: Instant | None = None
    """A caller's absolute deadline; the earlier of the two wins."""
    route: str
    advice: dict[str, str] = {}
    """Why this route, and which plugin said so: the detail of the step accepted → routed."""
    principal: str
    request_id: str
    node_id: NodeId
    traceparent: str | None = None
    run_id: str | None = None
    hold: bool = False
    args: dict[str, Any] = {}
    sealed: bytes | None = None
    requeued_from: IntentId | None = None
    message: Message | None = None
    """The message that is its own intent (op `message`); its id is the intent's."""
    key: IdempotencyKey | None = None
    """Its own, where the recording's covers many."""
    attempts: int = 0
    claim: Session | None = None
    """With it the row is born `in_progress` under this session, or `pending` if its epoch has moved."""
    sent_at: Instant | None = None
    """With a claim: when its frame left, for the count of crashes."""
    created_at: Instant | None = None
    """For LOCAL work: when it was accepted; None is the database's now."""


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that becomes true in one commit when a call is accepted."""

    intents: tuple[NewIntent, ...] = ()
    key: IdempotencyKey | None = None
    answer: bytes | None = None
    """Kept with the key of a call that makes many intents: what a repeat is told."""
    agent: Agent | None = None
    """A new agent's row, written in the same transaction as its `create`."""
    provider: Provider | None = None
    supersedes_starts: bool = False
    """Starts of this agent that are pending and never were claimed end `cancelled`, reason `superseded`."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    intents: tuple[Intent, ...] = ()
    superseded: tuple[Intent, ...] = ()
    transitions: tuple[Transition, ...] = ()
    repeated: Repeated | None = None
    taken: tuple[IntentId, ...] = ()
    """Those whose own keys were used before: nothing was written at all; ask without them."""


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Take the heads of lanes of one broker, at most `limit`, as long as its row carries this session."""

    session: Session
    limit: int
    ops: frozenset[Op]
    ids: tuple[IntentId, ...] | None = None
    """A signal's hint: look at the lanes of these only. None looks at all of the broker's."""
    lazily: bool = False
    """Its commit need not wait for the disk: the broker dedupes, so what a crash undoes is made good."""


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    intents: tuple[Intent, ...] = ()
    transitions: tuple[Transition, ...] = ()
    stale: bool = False
    """The broker's row carries another node, session or epoch."""
    now: Instant = Instant(0)
    """The database's clock at the claim: what remains until a deadline is measured from here."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an intent in this node's hands stands; None leaves a field alone. Fenced by epoch and attempt."""

    intent_id: IntentId
    op: Op
    epoch: Epoch
    attempt: int
    sent: bool = False
    accepted: bool = False


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How an intent ended, with everything that becomes true with it in one commit."""

    intent_id: IntentId
    op: Op
    state: State
    session: Session
    attempt: int
    reason: str
    result: Any = None
    error: Failure | None = None
    agent_id: AgentId
    change: AgentChange | None = None
    sent_at: Instant | None = None
    accepted_at: Instant | None = None
    failures: int = 0
    """What this attempt adds."""
    lazily: bool = False
    """Its commit need not wait for the disk: driven again after a crash, the broker answers the same."""


class PutBack(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that is no end: back to `pending`. Fenced by epoch and attempt like an end."""

    intent_id: IntentId
    op: Op
    session: Session
    attempt: int
    reason: str
    retry_in: float = 0.0
    failures: int = 0
    error: Failure | None = None
    """What the broker said, kept as the row's last error."""


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an `End` or a `PutBack`."""

    accepted: bool
    """False: somebody else owns it now; nothing was written."""
    intent: Intent | None = None
    agent: Agent | None = None
    """The agent as stored after it."""
    transitions: tuple[Transition, ...] = ()
    waiting: bool = False
    """Something of this agent is pending and might be claimed now."""
    dropped: tuple[Intent, ...] = ()
    """Messages that were held for an agent which this end deleted: cancelled with it. `redrive` finds the rest."""


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    outcome: Literal["cancelled", "cancel_requested", "already_ended"]
    intent: Intent
    transitions: tuple[Transition, ...] = ()


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """Intents that a sweep, a release or an expiry moved."""

    intents: tuple[Intent, ...] = ()
    transitions: tuple[Transition, ...] = ()


class IntentFilter(msgspec.Struct, frozen=True, kw_only=True):
    state: State | None = None
    op: Op | None = None
    agent_id: str | None = None
    broker_id: str | None = None
    project_id: str | None = None
    group_id: str | None = None
    """Messages that were said together."""


class LaneView(msgspec.Struct, frozen=True, kw_only=True):
    """What `explain` needs beside the intent itself."""

    intent: Intent
    agent: Agent | None
    broker: Broker | None
    behind: Intent | None
    """The unfinished intent right before it in its lane."""
    owner_alive: bool
    history: tuple[Transition, ...]
    owner: Node | None = None
    """The hub that has it in hand or, while it is pending, the one that the broker's row names."""
    in_flight: int = 0
    """What anybody has in hand of its broker."""
    now: Instant = Instant(0)
    """The database's clock."""


class Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges: how many intents are in which unfinished state, and how many messages wait over five minutes."""

    counts: dict[tuple[Op, State], int]
    stuck_messages: int


# -- after the database was away ------------------------------------------------------------------------------


class Era(msgspec.Struct, frozen=True, kw_only=True):
    """For how long the database has kept every commit. A crash of it, or a failover, ends an era: it may have undone
    the last commits that nobody waited for."""

    id: str
    since: int
    """What has a smaller `seq` was recorded before: it may have been claimed once more than its row tells."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one intent, in somebody's hands."""

    intent_id: IntentId
    op: Op
    broker_id: BrokerId
    attempt: int


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What a node knows of one of its sessions, whatever the rows tell."""

    session: Session
    in_hand: tuple[Held, ...] = ()
    ended: tuple[Held, ...] = ()
    """Whose ends it wrote in the last minutes."""


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """Where the rows of a session told less, or more, than its node knows."""

    stale: bool = False
    """The broker's row carries another node, session or epoch: nothing was written."""
    taken: tuple[Intent, ...] = ()
    """Claims that were undone, of what is in hand or had ended: claimed again, with the attempt that they had."""
    unended: tuple[IntentId, ...] = ()
    """Ends that were undone: in progress again, to be ended again."""
    gone: tuple[IntentId, ...] = ()
    """Of what is known these have no row at all."""
    strangers: tuple[Held, ...] = ()
    """In this session's hands by the rows, and not known: a claim whose answer was lost, or an undone put-back."""
    transitions: tuple[Transition, ...] = ()


# -- sessions -----------------------------------------------------------------------------------------------


class SessionClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A socket was accepted: the newest always wins. One of kind `direct` wins only what nobody holds."""

    broker_id: BrokerId
    node_id: NodeId
    session_id: SessionId
    kind: Kind = "socket"
    last_epoch: int = 0
    """The highest epoch that the broker has seen: the row's epoch grows beyond both."""
    instance: str | None = None
    version: str | None = None
    capabilities: tuple[str, ...] = ()
    window: int | None = None


class SessionClaimed(msgspec.Struct, frozen=True, kw_only=True):
    session: Session
    broker: Broker
    former: Session | None
    """Who held it before: to be signalled, so that it closes its socket."""
    redriven: Changed
    """What older epochs left `in_progress`, now `pending`; and what was poison, now `failed`."""


class Released(msgspec.Struct, frozen=True, kw_only=True):
    cleared: bool
    """False: the row names another session; nothing was written, and nobody is told that the broker left."""
    changed: Changed = Changed()


class Reaped(msgspec.Struct, frozen=True, kw_only=True):
    lost_nodes: tuple[NodeId, ...] = ()
    cleared: tuple[BrokerId, ...] = ()
    changed: Changed = Changed()


# -- agents, brokers, projects ------------------------------------------------------------------------------


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """All that a call about an agent must know, read in one statement."""

    agent: Agent
    project: Project
    broker: Broker | None
    waiting: frozenset[Lane]
    """Lanes of this agent that hold unfinished intents in the database."""


class AgentFilter(msgspec.Struct, frozen=True, kw_only=True):
    project_id: str | None = None
    runtime_broker_id: str | None = None
    slug: str | None = None
    phase: str | None = None
    include_deleted: bool = False


class AgentEdit(msgspec.Struct, frozen=True, kw_only=True):
    """PATCH: None leaves a field alone. `state_version` None does not compare."""

    agent_id: AgentId
    state_version: int | None = None
    name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    task_summary: str | None = None
    config: dict[str, Any] | None = None


class ReportOutcome(msgspec.Struct, frozen=True, kw_only=True):
    agent: Agent | None
    """None: no such agent."""
    changed: bool
    run_unknown: bool = False
    """The report names a run that the row does not: ended, or not stored yet."""


class BrokerRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """A broker and the join token that it is given; a known id or name is registered again by its owner."""

    broker_id: BrokerId
    name: str
    slug: str
    auto_provide: bool = False
    labels: dict[str, str] = {}
    endpoint: str | None = None
    """Its own HTTP address; None leaves what it had."""
    created_by: str
    by_admin: bool = False
    token_id: str
    token_hash: str
    token_lives: float
    key: IdempotencyKey | None = None
    sealed_token: bytes = b""
    """Kept with the key, as long as that."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    broker: Broker
    expires_at: Instant
    reregistered: bool
    sealed_token: bytes | None = None
    """The key was used before: the token that was given then."""


class BrokerJoin(msgspec.Struct, frozen=True, kw_only=True):
    broker_id: BrokerId
    token_hash: str
    key_id: str
    sealed: bytes
    version: str | None = None
    capabilities: tuple[str, ...] = ()


class BrokerEdit(msgspec.Struct, frozen=True, kw_only=True):
    broker_id: BrokerId
    paused: bool | None = None
    conflict: bool | None = None
    name: str | None = None
    labels: dict[str, str] | None = None
    auto_provide: bool | None = None
    endpoint: str | None = None
    """An empty one takes it away. A session over HTTP that uses another is cleared."""
    heartbeat: bool = False
    """Stamp `last_heartbeat`; it never makes the broker online."""


class ProjectEdit(msgspec.Struct, frozen=True, kw_only=True):
    """None leaves a value as it is."""

    project_id: str
    name: str | None = None
    git_remote: str | None = None
    default_runtime_broker_id: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    visibility: str | None = None


class SealedSecret(msgspec.Struct, frozen=True, kw_only=True):
    key_id: str
    sealed: bytes


class User(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    email: str
    display_name: str
    role: Literal["admin", "member", "viewer"]


# -- the contract -------------------------------------------------------------------------------------------


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
        agent which is gone → `cancelled`: they were written beside its end, or were too many to end with it."""
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


class SchemaState(msgspec.Struct, frozen=True, kw_only=True):
    """Which schema a database has, and which this program reads and writes."""

    found: str | None
    """None: none yet."""
    wanted: str
    known: bool
    """False: a later version of this program wrote it."""


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
