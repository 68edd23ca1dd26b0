"""What a backend is asked about intents, and what it answers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from kernel.agent import Agent, AgentChange, AgentId
from kernel.broker import Broker, BrokerId, Epoch, Provider, Session
from kernel.clock import Instant
from kernel.errors import Failure
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.message import Message
from kernel.node import Node, NodeId
from kernel.transition import Transition

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
