"""The first schema: hubs, people, projects, brokers, agents, intents, messages, history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from plugins.storage.schema import Count, Flag, Id, Instant, Json

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "broker_dispatch",
        sa.Column("id", Id(), nullable=False),
        sa.Column("broker_id", Id(), nullable=False),
        sa.Column("agent_id", Id(), nullable=False),
        sa.Column("agent_slug", sa.Text(), nullable=False),
        sa.Column("project_id", Id(), nullable=False),
        sa.Column("op", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), server_default="control", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("seq", Count(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("broker_crashes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("claimed_by", Id(), nullable=True),
        sa.Column("claimed_epoch", Count(), nullable=True),
        sa.Column("claimed_session", Id(), nullable=True),
        sa.Column("claimed_at", Instant(), nullable=True),
        sa.Column("sent_at", Instant(), nullable=True),
        sa.Column("accepted_at", Instant(), nullable=True),
        sa.Column("progress_at", Instant(), nullable=True),
        sa.Column("next_attempt_at", Instant(), nullable=True),
        sa.Column("deadline_at", Instant(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("node_id", Id(), nullable=False),
        sa.Column("traceparent", sa.Text(), nullable=True),
        sa.Column("run_id", Id(), nullable=True),
        sa.Column("requeued_from", Id(), nullable=True),
        sa.Column("hold", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("args", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("result", Json(), nullable=True),
        sa.Column("error", Json(), nullable=True),
        sa.Column("ended_at", Instant(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_broker_dispatch")),
        sa.UniqueConstraint("seq", name=op.f("uq_broker_dispatch_seq")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        op.f("ix_broker_dispatch_agent_id_created_at_id"),
        "broker_dispatch",
        ["agent_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_broker_dispatch_broker_id_created_at_id"),
        "broker_dispatch",
        ["broker_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_broker_dispatch_created_at_id"), "broker_dispatch", ["created_at", "id"], unique=False)
    op.create_index(
        "ix_broker_dispatch_deadline",
        "broker_dispatch",
        ["deadline_at"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "ix_broker_dispatch_in_hand",
        "broker_dispatch",
        ["broker_id", "agent_id"],
        unique=False,
        sqlite_where=sa.text("state = 'in_progress'"),
        postgresql_where=sa.text("state = 'in_progress'"),
    )
    op.create_index(
        op.f("ix_broker_dispatch_project_id_created_at_id"),
        "broker_dispatch",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_broker_dispatch_set_aside",
        "broker_dispatch",
        ["state", "created_at", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('failed', 'expired', 'cancelled')"),
        postgresql_where=sa.text("state IN ('failed', 'expired', 'cancelled')"),
    )
    op.create_index(
        "ix_broker_dispatch_unfinished",
        "broker_dispatch",
        ["broker_id", "agent_id", "seq"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.create_table(
            "counters",
            sa.Column("name", sa.Text(), nullable=False),
            sa.Column("value", Count(), nullable=False),
            sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
            sqlite_strict=True,
            sqlite_with_rowid=False,
        )
    else:
        op.execute(sa.schema.CreateSequence(sa.Sequence("dispatch_seq")))
    op.create_table(
        "hub_nodes",
        sa.Column("id", Id(), nullable=False),
        sa.Column("started_at", Instant(), nullable=False),
        sa.Column("beat_at", Instant(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("draining", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("lost_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_nodes")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("intent_id", Id(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("created", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency_keys")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_idempotency_keys_created"), "idempotency_keys", ["created"], unique=False)
    op.create_table(
        "messages",
        sa.Column("id", Id(), nullable=False),
        sa.Column("project_id", Id(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("sender_id", sa.Text(), nullable=True),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("recipient_id", sa.Text(), nullable=True),
        sa.Column("recipient_agent_id", Id(), nullable=True),
        sa.Column("msg", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), server_default="instruction", nullable=False),
        sa.Column("urgent", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("broadcasted", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("read", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("agent_id", Id(), nullable=True),
        sa.Column("group_id", Id(), nullable=True),
        sa.Column("envelope", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("broker_id", Id(), nullable=True),
        sa.Column("agent_slug", sa.Text(), nullable=True),
        sa.Column("dispatch_state", sa.Text(), server_default="none", nullable=False),
        sa.Column("seq", Count(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("broker_crashes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("claimed_by", Id(), nullable=True),
        sa.Column("claimed_epoch", Count(), nullable=True),
        sa.Column("claimed_session", Id(), nullable=True),
        sa.Column("claimed_at", Instant(), nullable=True),
        sa.Column("sent_at", Instant(), nullable=True),
        sa.Column("accepted_at", Instant(), nullable=True),
        sa.Column("progress_at", Instant(), nullable=True),
        sa.Column("next_attempt_at", Instant(), nullable=True),
        sa.Column("deadline_at", Instant(), nullable=True),
        sa.Column("route", sa.Text(), nullable=True),
        sa.Column("principal", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("node_id", Id(), nullable=True),
        sa.Column("traceparent", sa.Text(), nullable=True),
        sa.Column("run_id", Id(), nullable=True),
        sa.Column("requeued_from", Id(), nullable=True),
        sa.Column("hold", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("args", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("result", Json(), nullable=True),
        sa.Column("error", Json(), nullable=True),
        sa.Column("ended_at", Instant(), nullable=True),
        sa.Column("created", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        sa.UniqueConstraint("seq", name=op.f("uq_messages_seq")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "ix_messages_broker_id_intents",
        "messages",
        ["broker_id", "created", "id"],
        unique=False,
        sqlite_where=sa.text("seq IS NOT NULL"),
        postgresql_where=sa.text("seq IS NOT NULL"),
    )
    op.create_index(
        "ix_messages_created_intents",
        "messages",
        ["created", "id"],
        unique=False,
        sqlite_where=sa.text("seq IS NOT NULL"),
        postgresql_where=sa.text("seq IS NOT NULL"),
    )
    op.create_index(
        "ix_messages_deadline",
        "messages",
        ["deadline_at"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "ix_messages_in_hand",
        "messages",
        ["broker_id", "recipient_agent_id"],
        unique=False,
        sqlite_where=sa.text("dispatch_state = 'in_progress'"),
        postgresql_where=sa.text("dispatch_state = 'in_progress'"),
    )
    op.create_index(
        op.f("ix_messages_project_id_created_id"), "messages", ["project_id", "created", "id"], unique=False
    )
    op.create_index(
        "ix_messages_recipient_agent_id_intents",
        "messages",
        ["recipient_agent_id", "created", "id"],
        unique=False,
        sqlite_where=sa.text("seq IS NOT NULL"),
        postgresql_where=sa.text("seq IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_messages_recipient_id_created_id"), "messages", ["recipient_id", "created", "id"], unique=False
    )
    op.create_index(
        "ix_messages_set_aside",
        "messages",
        ["dispatch_state", "created", "id"],
        unique=False,
        sqlite_where=sa.text("dispatch_state IN ('failed', 'expired', 'cancelled')"),
        postgresql_where=sa.text("dispatch_state IN ('failed', 'expired', 'cancelled')"),
    )
    op.create_index(
        "ix_messages_unfinished",
        "messages",
        ["broker_id", "recipient_agent_id", "seq"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "nonces",
        sa.Column("broker_id", Id(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("seen_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("broker_id", "nonce", name=op.f("pk_nonces")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_nonces_seen_at"), "nonces", ["seen_at"], unique=False)
    op.create_table(
        "projects",
        sa.Column("id", Id(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("git_remote", sa.Text(), nullable=True),
        sa.Column("default_runtime_broker_id", Id(), nullable=True),
        sa.Column("labels", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("annotations", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("shared_dirs", sa.Text(), nullable=True),
        sa.Column("created", Instant(), nullable=False),
        sa.Column("updated", Instant(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("owner_id", sa.Text(), nullable=True),
        sa.Column("visibility", sa.Text(), server_default="private", nullable=False),
        sa.Column("github_installation_id", Count(), nullable=True),
        sa.Column("github_permissions", sa.Text(), nullable=True),
        sa.Column("github_app_status", sa.Text(), nullable=True),
        sa.Column("git_identity", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("slug", name=op.f("uq_projects_slug")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index(op.f("ix_projects_created_id"), "projects", ["created", "id"], unique=False)
    op.create_table(
        "runtime_brokers",
        sa.Column("id", Id(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), server_default="connected", nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("lock_version", Count(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.Text(), server_default="offline", nullable=False),
        sa.Column("last_heartbeat", Instant(), nullable=True),
        sa.Column("capabilities", Json(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("supported_harnesses", Json(), nullable=True),
        sa.Column("resources", Json(), nullable=True),
        sa.Column("runtimes", Json(), nullable=True),
        sa.Column("labels", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("annotations", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("auto_provide", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("connected_hub_id", Id(), nullable=True),
        sa.Column("connected_session_id", Id(), nullable=True),
        sa.Column("connected_at", Instant(), nullable=True),
        sa.Column("connection_epoch", Count(), server_default=sa.text("0"), nullable=False),
        sa.Column("connection_kind", sa.Text(), nullable=True),
        sa.Column("renewed_at", Instant(), nullable=True),
        sa.Column("disconnected_at", Instant(), nullable=True),
        sa.Column("disconnect_code", sa.Integer(), nullable=True),
        sa.Column("instance", sa.Text(), nullable=True),
        sa.Column("window", sa.Integer(), nullable=True),
        sa.Column("announced", Json(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("paused", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("conflict", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("created", Instant(), nullable=False),
        sa.Column("updated", Instant(), nullable=False),
        sa.Column("deleted_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runtime_brokers")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(op.f("ix_runtime_brokers_created_id"), "runtime_brokers", ["created", "id"], unique=False)
    op.create_index(
        "uq_runtime_brokers_name_live",
        "runtime_brokers",
        ["name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "uq_runtime_brokers_slug_live",
        "runtime_brokers",
        ["slug"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "transitions",
        sa.Column("intent_id", Id(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=False),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("node_id", Id(), nullable=False),
        sa.Column("epoch", Count(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("detail", Json(), nullable=True),
        sa.PrimaryKeyConstraint("intent_id", "n", name=op.f("pk_transitions")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "user_access_tokens",
        sa.Column("id", Id(), nullable=False),
        sa.Column("user_id", Id(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("project_id", Id(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("revoked", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("last_used", Instant(), nullable=True),
        sa.Column("created", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_access_tokens")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_user_access_tokens_key_hash")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index(op.f("ix_user_access_tokens_project_id"), "user_access_tokens", ["project_id"], unique=False)
    op.create_index(op.f("ix_user_access_tokens_user_id"), "user_access_tokens", ["user_id"], unique=False)
    op.create_table(
        "users",
        sa.Column("id", Id(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("avatar_url", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), server_default="member", nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("preferences", Json(), nullable=True),
        sa.Column("created", Instant(), nullable=False),
        sa.Column("last_login", Instant(), nullable=True),
        sa.Column("last_seen", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "agents",
        sa.Column("id", Id(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("template", sa.Text(), nullable=True),
        sa.Column("project_id", Id(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("owner_id", sa.Text(), nullable=True),
        sa.Column("delegation_enabled", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("visibility", sa.Text(), server_default="private", nullable=False),
        sa.Column("labels", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("annotations", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("phase", sa.Text(), server_default="created", nullable=False),
        sa.Column("activity", sa.Text(), nullable=True),
        sa.Column("tool_name", sa.Text(), nullable=True),
        sa.Column("container_status", sa.Text(), nullable=True),
        sa.Column("runtime_state", sa.Text(), nullable=True),
        sa.Column("stalled_from_activity", sa.Text(), nullable=True),
        sa.Column("current_turns", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("current_model_calls", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("image", sa.Text(), nullable=True),
        sa.Column("detached", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("runtime", sa.Text(), nullable=True),
        sa.Column("runtime_broker_id", Id(), nullable=True),
        sa.Column("web_pty_enabled", Flag(), server_default=sa.false(), nullable=False),
        sa.Column("task_summary", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("applied_config", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("detail", Json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("ancestry", Json(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("run_id", Id(), nullable=True),
        sa.Column("created", Instant(), nullable=False),
        sa.Column("updated", Instant(), nullable=False),
        sa.Column("last_seen", Instant(), nullable=True),
        sa.Column("last_activity_event", Instant(), nullable=True),
        sa.Column("started_at", Instant(), nullable=True),
        sa.Column("deleted_at", Instant(), nullable=True),
        sa.Column("state_version", Count(), server_default=sa.text("1"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_agents_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(op.f("ix_agents_created_id"), "agents", ["created", "id"], unique=False)
    op.create_index(
        "ix_agents_deleted_at",
        "agents",
        ["deleted_at"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_agents_project_id_created_id"), "agents", ["project_id", "created", "id"], unique=False)
    op.create_index(
        op.f("ix_agents_runtime_broker_id_created_id"), "agents", ["runtime_broker_id", "created", "id"], unique=False
    )
    op.create_index(
        "uq_agents_project_id_slug_live",
        "agents",
        ["project_id", "slug"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "broker_join_tokens",
        sa.Column("id", Id(), nullable=False),
        sa.Column("broker_id", Id(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.Column("used_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["broker_id"], ["runtime_brokers.id"], name=op.f("fk_broker_join_tokens_broker_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_broker_join_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_broker_join_tokens_token_hash")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index(op.f("ix_broker_join_tokens_broker_id"), "broker_join_tokens", ["broker_id"], unique=False)
    op.create_index(op.f("ix_broker_join_tokens_expires_at"), "broker_join_tokens", ["expires_at"], unique=False)
    op.create_table(
        "broker_secrets",
        sa.Column("broker_id", Id(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("created", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["broker_id"], ["runtime_brokers.id"], name=op.f("fk_broker_secrets_broker_id")),
        sa.PrimaryKeyConstraint("broker_id", "key_id", name=op.f("pk_broker_secrets")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "project_contributors",
        sa.Column("id", Id(), nullable=False),
        sa.Column("project_id", Id(), nullable=False),
        sa.Column("broker_id", Id(), nullable=False),
        sa.Column("broker_name", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), server_default="connected", nullable=False),
        sa.Column("status", sa.Text(), server_default="offline", nullable=False),
        sa.Column("profiles", sa.Text(), nullable=True),
        sa.Column("last_seen", Instant(), nullable=True),
        sa.Column("local_path", sa.Text(), nullable=True),
        sa.Column("linked_by", sa.Text(), nullable=True),
        sa.Column("linked_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(
            ["broker_id"], ["runtime_brokers.id"], name=op.f("fk_project_contributors_broker_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_project_contributors_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project_contributors")),
        sa.UniqueConstraint("project_id", "broker_id", name=op.f("uq_project_contributors_project_id_broker_id")),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index(op.f("ix_project_contributors_broker_id"), "project_contributors", ["broker_id"], unique=False)
    # ### end Alembic commands ###
