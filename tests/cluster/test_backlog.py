"""What lay there for long: a sweep ends more than one round of it, however long each statement takes on its way."""

from __future__ import annotations

import anyio
import pytest

from kernel.clock import SYSTEM
from kernel.config import Settings
from kernel.node import Node
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.pulse import Pulse
from kernel.signals import InProcessSignals
from kernel.storage import Storage
from kernel.sweeps import BATCH, Judgement, Sweeps
from kernel.testing.postgres import Server
from kernel.testing.storage.world import World
from kernel.waiters import Waiters
from plugins.storage.postgres.connecting import Connection, Target
from plugins.storage.postgres.opening import opened
from tests.cluster.steering import NODE, watcher
from tests.harness.proxy import Proxy

__all__ = ["watcher"]
pytestmark = pytest.mark.anyio

AWAY = 0.002
"""Seconds for which a statement, and its answer, are on their way: another building's database."""
CREATIONS = """
WITH made AS (
    INSERT INTO agents (id, slug, name, project_id, runtime_broker_id, phase, created, updated)
    SELECT gen_random_uuid(), gen_random_uuid()::text, 'a', agent.project_id, agent.runtime_broker_id, 'created',
        now(), now()
    FROM agents AS agent, generate_series(1, $2::int) WHERE agent.id = $1 RETURNING id, slug, project_id,
        runtime_broker_id
)
INSERT INTO broker_dispatch (id, broker_id, agent_id, agent_slug, project_id, op, lane, state, seq, deadline_at, route,
    principal, request_id, node_id, created_at)
SELECT gen_random_uuid(), runtime_broker_id, id, slug, project_id, 'create', 'control', 'pending',
    nextval('dispatch_seq'), now(), 'hold', 'user:test', 'r', runtime_broker_id, now() - interval '1 minute'
FROM made
"""
"""So many creations, each with its agent, that nobody took in time."""


class Silent:
    def tell(self, *_: object) -> None: ...


async def nothing() -> None:
    """This node holds no session."""


async def sweeps_of(storage: Storage, world: World) -> Sweeps:
    now, observer = SYSTEM.now(), Observer(Silent(), Silent(), Silent())
    pulse = Pulse(
        storage,
        Node(id=world.node, started_at=now, beat_at=now, version="t"),
        SYSTEM,
        every=60,
        lost_after=600,
        grace=0,
    )
    await pulse.start()
    return Sweeps(
        storage=storage,
        observer=observer,
        waiters=Waiters(storage, SYSTEM, ()),
        notices=Notices(signals=InProcessSignals(SYSTEM), observer=observer, node_id=world.node, clock=SYSTEM),
        pulse=pulse,
        clock=SYSTEM,
        every=Settings().sweep,
        spans=Judgement(lost_after=600, stale_after=600, reconnect_grace=5, retention=60),
        renew=nothing,
    )


async def test_a_backlog_is_ended_round_by_round_over_a_long_way(
    postgres: Server, postgres_dsn: str, watcher: Connection
) -> None:
    """Row by row a round would never be committed in time, and the next sweep would begin with the same."""
    with Proxy(postgres.port) as way:
        dsn = postgres.dsn(postgres_dsn.rpartition("/")[2], port=way.port)
        storage = await opened(Target(dsn=dsn), Settings(), NODE)
        world = await World.built(storage)
        agent = await world.new_agent()
        await watcher.execute(CREATIONS, agent.id, 2 * BATCH + 10)
        sweeps = await sweeps_of(storage, world)
        way.delay(AWAY)
        with anyio.fail_after(60):
            await sweeps.stuck()
        way.heal()
        assert await watcher.fetchval("SELECT count(*) FROM broker_dispatch WHERE state = 'expired'") == 2 * BATCH + 10
        assert await watcher.fetchval("SELECT count(*) FROM transitions WHERE reason = 'deadline'") == 2 * BATCH + 10
        assert await watcher.fetchval("SELECT count(*) FROM agents") == 1
        await storage.close()
