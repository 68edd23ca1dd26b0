"""The one schema, for both dialects: every table that dispatch, brokers, agents, messages and projects need.

Own types, so that a value is storable as it is: a compiled statement on a raw connection skips SQLAlchemy's
processors. Principal columns (who made or owns something) have no foreign key: principals are of several kinds.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

SEQUENCE = "dispatch_seq"
"""What numbers intents of both tables on PostgreSQL; on SQLite a row of `counters`."""

# -- types --------------------------------------------------------------------------------------------------


class Id(TypeDecorator[str]):
    """A UUID: 36 characters with dashes on SQLite."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return postgresql.UUID(as_uuid=False) if dialect.name == "postgresql" else sa.Text()


class Instant(TypeDecorator[int]):
    """Microseconds since the Unix epoch, UTC. The connections to PostgreSQL speak it in integers too."""

    impl = sa.Integer
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return sa.DateTime(timezone=True) if dialect.name == "postgresql" else sa.Integer()

    def bind_processor(self, dialect: Dialect) -> None:
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        return None


class Json(TypeDecorator[Any]):
    """Any JSON value; None is NULL, not JSON's null. Text on SQLite."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return postgresql.JSONB(none_as_null=True) if dialect.name == "postgresql" else sa.Text()

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value if dialect.name == "postgresql" else dump(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return value if dialect.name == "postgresql" else parse(value)


class Flag(TypeDecorator[bool]):
    """True or false; 1 or 0 on SQLite, whose STRICT tables know no boolean."""

    impl = sa.Boolean
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return sa.Boolean() if dialect.name == "postgresql" else sa.Integer()

    def process_bind_param(self, value: bool | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else int(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> bool | None:
        return None if value is None else bool(value)


class Count(TypeDecorator[int]):
    """An integer of 64 bits."""

    impl = sa.BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return sa.BigInteger() if dialect.name == "postgresql" else sa.Integer()


Bytes = sa.LargeBinary
Text = sa.Text


def dump(value: Any) -> str | None:
    """The text that a JSON column holds on SQLite."""
    return None if value is None else msgspec.json.encode(value).decode()


def parse(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


# -- columns ------------------------------------------------------------------------------------------------

NO, YES = sa.false(), sa.true()
ZERO, EMPTY, NO_LIST = sa.text("0"), sa.text("'{}'"), sa.text("'[]'")


def _key(name: str = "id", type_: Any = Id) -> sa.Column[Any]:
    return sa.Column(name, type_(), primary_key=True, nullable=False)


def _must(name: str, type_: Any, *more: Any, default: Any = None) -> sa.Column[Any]:
    return sa.Column(name, type_(), *more, nullable=False, server_default=default)


def _may(name: str, type_: Any, *more: Any) -> sa.Column[Any]:
    return sa.Column(name, type_(), *more, nullable=True)


def _delivery(required: bool) -> list[sa.Column[Any]]:
    """What a row needs to be delivered, under the same names in both tables. A message to a user has none of it."""
    must = _must if required else _may
    return [
        must("seq", Count),
        _must("attempts", sa.Integer, default=ZERO),
        _must("failures", sa.Integer, default=ZERO),
        _must("broker_crashes", sa.Integer, default=ZERO),
        _may("claimed_by", Id),
        _may("claimed_epoch", Count),
        _may("claimed_session", Id),
        _may("claimed_at", Instant),
        _may("sent_at", Instant),
        _may("accepted_at", Instant),
        _may("progress_at", Instant),
        _may("next_attempt_at", Instant),
        must("deadline_at", Instant),
        must("route", Text),
        must("principal", Text),
        must("request_id", Text),
        must("node_id", Id),
        _may("traceparent", Text),
        _may("run_id", Id),
        _may("requeued_from", Id),
        _must("hold", Flag, default=NO),
        _must("args", Json, default=EMPTY),
        _may("sealed", Bytes),
        _may("result", Json),
        _may("error", Json),
        _may("ended_at", Instant),
    ]


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


ROOM = {"fillfactor": 70}
"""For PostgreSQL: rows that change often find place for their next version on their own page."""


def _table(name: str, *parts: Any, rowid: bool = True, busy: bool = False, only: str | None = None) -> sa.Table:
    """`rowid` False: a narrow table that is one tree by its key on SQLite. `busy`: its rows change again and again.
    `only`: the one dialect that has it."""
    room: dict[str, Any] = {"postgresql_with": ROOM} if busy else {}
    return sa.Table(
        name, metadata, *parts, sqlite_strict=True, sqlite_with_rowid=rowid, info={"only": only} if only else {}, **room
    )


sa.Sequence(SEQUENCE, metadata=metadata)


# -- hubs, people, projects ---------------------------------------------------------------------------------

hub_nodes = _table(
    "hub_nodes",
    _key(),
    _must("started_at", Instant),
    _must("beat_at", Instant),
    _must("version", Text),
    _must("draining", Flag, default=NO),
    _may("lost_at", Instant),
    busy=True,
)

users = _table(
    "users",
    _key(),
    sa.Column("email", Text(), nullable=False, unique=True),
    _must("display_name", Text),
    _may("avatar_url", Text),
    _must("role", Text, default="member"),
    _must("status", Text, default="active"),
    _may("preferences", Json),
    _must("created", Instant),
    _may("last_login", Instant),
    _may("last_seen", Instant),
)

user_access_tokens = _table(
    "user_access_tokens",
    _key(),
    _must("user_id", Id),
    _must("name", Text),
    _must("prefix", Text),
    sa.Column("key_hash", Text(), nullable=False, unique=True),
    _must("project_id", Id),
    _must("scopes", Text),
    _must("revoked", Flag, default=NO),
    _may("expires_at", Instant),
    _may("last_used", Instant),
    _must("created", Instant),
    sa.Index(None, "user_id"),
    sa.Index(None, "project_id"),
)

projects = _table(
    "projects",
    _key(),
    _must("name", Text),
    sa.Column("slug", Text(), nullable=False, unique=True),
    _may("git_remote", Text),
    _may("default_runtime_broker_id", Id),
    _must("labels", Json, default=EMPTY),
    _must("annotations", Json, default=EMPTY),
    _may("shared_dirs", Text),
    _must("created", Instant),
    _must("updated", Instant),
    _may("created_by", Text),
    _may("owner_id", Text),
    _must("visibility", Text, default="private"),
    _may("github_installation_id", Count),
    _may("github_permissions", Text),
    _may("github_app_status", Text),
    _may("git_identity", Text),
    sa.Index(None, "created", "id"),
)

# -- brokers ------------------------------------------------------------------------------------------------

runtime_brokers = _table(
    "runtime_brokers",
    _key(),
    _must("name", Text),
    _must("slug", Text),
    _must("mode", Text, default="connected"),
    _may("version", Text),
    _must("lock_version", Count, default=ZERO),
    _must("status", Text, default="offline"),
    _may("last_heartbeat", Instant),
    _must("capabilities", Json, default=NO_LIST),
    _may("supported_harnesses", Json),
    _may("resources", Json),
    _may("runtimes", Json),
    _must("labels", Json, default=EMPTY),
    _must("annotations", Json, default=EMPTY),
    _may("endpoint", Text),
    _may("created_by", Text),
    _must("auto_provide", Flag, default=NO),
    _may("connected_hub_id", Id),
    _may("connected_session_id", Id),
    _may("connected_at", Instant),
    _must("connection_epoch", Count, default=ZERO),
    _may("connection_kind", Text),
    _may("renewed_at", Instant),
    _may("disconnected_at", Instant),
    _may("disconnect_code", sa.Integer),
    _may("instance", Text),
    _may("window", sa.Integer),
    _must("announced", Json, default=NO_LIST),
    _must("paused", Flag, default=NO),
    _must("conflict", Flag, default=NO),
    _must("created", Instant),
    _must("updated", Instant),
    _may("deleted_at", Instant),
    sa.Index(None, "created", "id"),
    busy=True,
)
_LIVE_BROKER = runtime_brokers.c.deleted_at.is_(None)
for _column in (runtime_brokers.c.name, runtime_brokers.c.slug):
    sa.Index(
        f"uq_runtime_brokers_{_column.name}_live",
        _column,
        unique=True,
        sqlite_where=_LIVE_BROKER,
        postgresql_where=_LIVE_BROKER,
    )

project_contributors = _table(
    "project_contributors",
    _key(),
    _must("project_id", Id, sa.ForeignKey("projects.id", ondelete="CASCADE")),
    _must("broker_id", Id, sa.ForeignKey("runtime_brokers.id", ondelete="CASCADE")),
    _must("broker_name", Text),
    _must("mode", Text, default="connected"),
    _must("status", Text, default="offline"),
    _may("profiles", Text),
    _may("last_seen", Instant),
    _may("local_path", Text),
    _may("linked_by", Text),
    _must("linked_at", Instant),
    sa.UniqueConstraint("project_id", "broker_id"),
    sa.Index(None, "broker_id"),
)

broker_secrets = _table(
    "broker_secrets",
    sa.Column("broker_id", Id(), sa.ForeignKey("runtime_brokers.id"), primary_key=True, nullable=False),
    _key("key_id", Text),
    _must("sealed", Bytes),
    _must("status", Text, default="active"),
    _must("created", Instant),
    _may("expires_at", Instant),
)

broker_join_tokens = _table(
    "broker_join_tokens",
    _key(),
    _must("broker_id", Id, sa.ForeignKey("runtime_brokers.id")),
    sa.Column("token_hash", Text(), nullable=False, unique=True),
    _must("created_by", Text),
    _must("created", Instant),
    _must("expires_at", Instant),
    _may("used_at", Instant),
    sa.Index(None, "broker_id"),
    sa.Index(None, "expires_at"),
)

nonces = _table(
    "nonces",
    _key("broker_id"),
    _key("nonce", Text),
    _must("seen_at", Instant),
    sa.Index(None, "seen_at"),
    rowid=False,
)

# -- agents -------------------------------------------------------------------------------------------------

agents = _table(
    "agents",
    _key(),
    _must("slug", Text),
    _must("name", Text),
    _may("template", Text),
    _must("project_id", Id, sa.ForeignKey("projects.id")),
    _may("created_by", Text),
    _may("owner_id", Text),
    _must("delegation_enabled", Flag, default=NO),
    _must("visibility", Text, default="private"),
    _must("labels", Json, default=EMPTY),
    _must("annotations", Json, default=EMPTY),
    _must("phase", Text, default="created"),
    _may("activity", Text),
    _may("tool_name", Text),
    _may("container_status", Text),
    _may("runtime_state", Text),
    _may("stalled_from_activity", Text),
    _must("current_turns", sa.Integer, default=ZERO),
    _must("current_model_calls", sa.Integer, default=ZERO),
    _may("image", Text),
    _must("detached", Flag, default=NO),
    _may("runtime", Text),
    _may("runtime_broker_id", Id),
    _must("web_pty_enabled", Flag, default=NO),
    _may("task_summary", Text),
    _may("message", Text),
    _must("applied_config", Json, default=EMPTY),
    _must("detail", Json, default=EMPTY),
    _must("ancestry", Json, default=NO_LIST),
    _may("run_id", Id),
    _must("created", Instant),
    _must("updated", Instant),
    _may("last_seen", Instant),
    _may("last_activity_event", Instant),
    _may("started_at", Instant),
    _may("deleted_at", Instant),
    _must("state_version", Count, default=sa.text("1")),
    sa.Index(None, "created", "id"),
    sa.Index(None, "project_id", "created", "id"),
    sa.Index(None, "runtime_broker_id", "created", "id"),
    busy=True,
)
_LIVE_AGENT = agents.c.deleted_at.is_(None)
_DELETED_AGENT = agents.c.deleted_at.is_not(None)
sa.Index(
    "uq_agents_project_id_slug_live",
    agents.c.project_id,
    agents.c.slug,
    unique=True,
    sqlite_where=_LIVE_AGENT,
    postgresql_where=_LIVE_AGENT,
)
sa.Index("ix_agents_deleted_at", agents.c.deleted_at, sqlite_where=_DELETED_AGENT, postgresql_where=_DELETED_AGENT)

# -- intents ------------------------------------------------------------------------------------------------

broker_dispatch = _table(
    "broker_dispatch",
    _key(),
    _must("broker_id", Id),
    _must("agent_id", Id),
    _must("agent_slug", Text),
    _must("project_id", Id),
    _must("op", Text),
    _must("lane", Text, default="control"),
    _must("state", Text),
    *_delivery(required=True),
    _must("created_at", Instant),
    sa.UniqueConstraint("seq"),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "agent_id", "created_at", "id"),
    sa.Index(None, "broker_id", "created_at", "id"),
    sa.Index(None, "project_id", "created_at", "id"),
    busy=True,
)

# A message to a user is no intent: its `seq` is NULL, and its `ended_at` is set from the start, since nothing is left
# to be done with it. So one short predicate, `ended_at IS NULL`, is what is unfinished in both tables.
messages = _table(
    "messages",
    _key(),
    _must("project_id", Id),
    _must("sender", Text),
    _may("sender_id", Text),
    _must("recipient", Text),
    _may("recipient_id", Text),
    _may("recipient_agent_id", Id),
    _must("msg", Text),
    _must("type", Text, default="instruction"),
    _must("urgent", Flag, default=NO),
    _must("broadcasted", Flag, default=NO),
    _must("read", Flag, default=NO),
    _may("agent_id", Id),
    _may("group_id", Id),
    _must("envelope", Json, default=EMPTY),
    _may("broker_id", Id),
    _may("agent_slug", Text),
    _must("dispatch_state", Text, default="none"),
    *_delivery(required=False),
    _must("created", Instant),
    sa.UniqueConstraint("seq"),
    sa.Index(None, "recipient_id", "created", "id"),
    sa.Index(None, "project_id", "created", "id"),
    busy=True,
)
_GROUPED = messages.c.group_id.is_not(None)
sa.Index("ix_messages_group_id", messages.c.group_id, sqlite_where=_GROUPED, postgresql_where=_GROUPED)

# How unfinished rows are found without wading through history: by partial indexes. `ended_at` changes once, so a
# claim touches only the smallest of them, that of what is in hand. Measured with 3,000 messages that wait for 64
# agents: a claim costs 31 µs an intent, and 401 without `in_hand`, which itself costs an intent's whole life 7 µs.
# With 100,000 ended rows a claim costs what it costs with none (bench/storage_sqlite.py).


def _partial(table: sa.Table, name: str, columns: tuple[Any, ...], where: Any) -> None:
    sa.Index(f"ix_{table.name}_{name}", *columns, sqlite_where=where, postgresql_where=where)


def _index_intents(table: sa.Table, agent: sa.Column[Any], state: sa.Column[Any], created: sa.Column[Any]) -> None:
    """The indexes of one of the two tables of intents."""
    unfinished = table.c.ended_at.is_(None)
    _partial(table, "unfinished", (table.c.broker_id, agent, table.c.seq), unfinished)
    _partial(table, "deadline", (table.c.deadline_at,), unfinished)
    _partial(table, "in_hand", (table.c.broker_id, agent), sa.text(f"{state.name} = 'in_progress'"))
    set_aside = sa.text(f"{state.name} IN ('failed', 'expired', 'cancelled')")
    _partial(table, "set_aside", (state, created, table.c.id), set_aside)


_index_intents(broker_dispatch, broker_dispatch.c.agent_id, broker_dispatch.c.state, broker_dispatch.c.created_at)
_index_intents(messages, messages.c.recipient_agent_id, messages.c.dispatch_state, messages.c.created)
for _names in (("created", "id"), ("recipient_agent_id", "created", "id"), ("broker_id", "created", "id")):
    _partial(
        messages, f"{_names[0]}_intents", tuple(messages.c[_name] for _name in _names), messages.c.seq.is_not(None)
    )
transitions = _table(
    "transitions",
    _key("intent_id"),
    _key("n", sa.Integer),
    _must("at", Instant),
    _must("from_state", Text),
    _must("to_state", Text),
    _must("reason", Text),
    _must("node_id", Id),
    _may("epoch", Count),
    _may("attempt", sa.Integer),
    _may("detail", Json),
    rowid=False,
)

idempotency_keys = _table(
    "idempotency_keys",
    _key("principal", Text),
    _key("key", Text),
    _must("request_hash", Text),
    _may("intent_id", Id),
    _may("status", sa.Integer),
    _may("answer", Bytes),
    _must("created", Instant),
    sa.Index(None, "created"),
    rowid=False,
)

counters = _table(
    "counters",
    _key("name", Text),
    _must("value", Count),
    rowid=False,
    only="sqlite",
)
"""The row `seq` numbers intents of both tables. PostgreSQL has a sequence in its place."""

eras = _table(
    "eras",
    _key("name", Text),
    _must("id", Id),
    _must("since", Count),
    only="postgresql",
)
"""One row, named `intents`: from which `seq` on the server has kept every commit. Migrations make the table UNLOGGED: a
crash or a failover, which may have undone the last commits, leaves it empty; an orderly stop leaves it as it is."""
