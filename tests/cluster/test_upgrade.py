"""A database with history gets no pending history: whatever a migration adds, nothing old is delivered again."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from kernel.broker import BrokerId, SessionId
from kernel.config import Settings
from kernel.intent import Op
from kernel.node import NodeId
from kernel.storage import ClaimRequest, IntentFilter, Page, SessionClaim
from plugins.storage import migrations
from plugins.storage.postgres.connecting import Target
from plugins.storage.postgres.engine import engine_to
from plugins.storage.postgres.opening import opened

pytestmark = pytest.mark.anyio

NODE = NodeId("00000000-0000-4000-8000-000000000001")
BROKER = BrokerId("00000000-0000-4000-8000-000000000002")
PROJECT, AGENT = "00000000-0000-4000-8000-000000000003", "00000000-0000-4000-8000-000000000004"
HISTORY = (
    f"INSERT INTO runtime_brokers (id, name, slug, created, updated) VALUES ('{BROKER}', 'b', 'b', now(), now())",
    f"INSERT INTO projects (id, name, slug, created, updated) VALUES ('{PROJECT}', 'p', 'p', now(), now())",
    f"""
    INSERT INTO agents (id, slug, name, project_id, runtime_broker_id, phase, created, updated)
    VALUES ('{AGENT}', 'a', 'a', '{PROJECT}', '{BROKER}', 'running', now(), now())
    """,
    f"""
    INSERT INTO messages (id, project_id, sender, recipient, recipient_id, msg, ended_at, created)
    SELECT gen_random_uuid(), '{PROJECT}', 'agent:{AGENT}', 'user:x', 'x', 'to a person', now(), now()
    FROM generate_series(1, 500)
    """,
    f"""
    INSERT INTO messages (id, project_id, sender, recipient, recipient_agent_id, msg, dispatch_state, broker_id,
        agent_slug, seq, deadline_at, route, principal, request_id, node_id, ended_at, created)
    SELECT gen_random_uuid(), '{PROJECT}', 'user:x', 'agent:{AGENT}', '{AGENT}', 'to an agent',
        (ARRAY['done', 'failed', 'expired', 'cancelled'])[n % 4 + 1], '{BROKER}', 'a', n, now() + interval '1 day',
        'local', 'user:x', 'r', '{NODE}', now(), now()
    FROM generate_series(1, 500) n
    """,
    f"""
    INSERT INTO broker_dispatch (id, broker_id, agent_id, agent_slug, project_id, op, state, seq, deadline_at, route,
        principal, request_id, node_id, created_at, ended_at)
    SELECT gen_random_uuid(), '{BROKER}', '{AGENT}', 'a', '{PROJECT}', 'start',
        (ARRAY['done', 'failed', 'expired', 'cancelled'])[n % 4 + 1], 1000 + n, now() + interval '1 day', 'local',
        'user:x', 'r', '{NODE}', now(), now()
    FROM generate_series(1, 500) n
    """,
)
"""As the first schema holds it."""


def begin_at_the_first(connection: sa.Connection) -> None:
    command.upgrade(migrations._config(connection), "0001")
    for statement in HISTORY:
        connection.execute(sa.text(statement))


async def test_a_database_with_history_gets_no_pending_history(postgres_dsn: str) -> None:
    target = Target(dsn=postgres_dsn)
    engine = engine_to(target, "first", NODE)
    async with engine.begin() as connection:
        await connection.run_sync(begin_at_the_first)
    storage = await opened(target, Settings(), NODE)
    try:
        assert await storage.schema_version() == migrations.head()
        assert (await storage.unfinished()).counts == {}
        claimed = await storage.claim_session(
            SessionClaim(broker_id=BROKER, node_id=NODE, session_id=SessionId(AGENT), instance=AGENT)
        )
        assert claimed.redriven.intents == ()
        claims = await storage.claim(ClaimRequest(session=claimed.session, limit=64, ops=frozenset(Op)))
        assert (claims.stale, claims.intents) == (False, ())
        assert await storage.poll(NODE) == []
        for swept in (await storage.redrive(NODE, 100), await storage.expire_due(NODE, 100)):
            assert swept.intents == ()
        assert await _ended(storage) == 1000
    finally:
        await storage.close()


async def _ended(storage: Any) -> int:
    found = await storage.list_intents(IntentFilter(), Page(limit=2000))
    assert all(intent.state.ended for intent in found)
    return len(found)
