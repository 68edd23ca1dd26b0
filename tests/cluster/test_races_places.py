"""Brokers and projects that are registered, joined, given agents and deleted by two hubs at once."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from kernel.broker import BrokerId, Session
from kernel.config import Settings
from kernel.errors import InvalidJoinToken, InvalidState, NotFound
from kernel.intent import Op
from kernel.storage import AgentFilter, BrokerEdit, BrokerJoin, Page, Recording, Registered, Storage
from kernel.testing.storage.world import World, uuid
from plugins.storage.postgres.connecting import Connection, Target
from plugins.storage.postgres.opening import opened
from tests.cluster.steering import OTHER, met, other, unfinished, watcher, world

__all__ = ["other", "watcher", "world"]
pytestmark = pytest.mark.anyio

DELETED = "UPDATE runtime_brokers SET deleted_at = now() WHERE id = $1"
AGENT = (
    "INSERT INTO agents (id, slug, name, project_id, runtime_broker_id, created, updated)"
    " VALUES (gen_random_uuid(), 'late', 'late', $1, $2, now(), now())"
)


async def test_no_agent_is_made_on_a_broker_that_is_being_deleted(
    world: World, other: Connection, watcher: Connection
) -> None:
    agent = world.agent()
    recording = Recording(intents=(world.intent(Op.CREATE, agent),), agent=agent)
    locked = ("SELECT 1 FROM runtime_brokers WHERE id = $1 FOR UPDATE", world.broker.id)
    told = await met(other, watcher, lambda: world.storage.record(recording), locked, (DELETED, world.broker.id))
    assert isinstance(told, NotFound)
    assert await world.storage.find_agent(agent.id) is None
    assert await world.storage.find_intents([recording.intents[0].id]) == []


async def test_no_broker_is_deleted_on_which_an_agent_is_being_made(
    world: World, other: Connection, watcher: Connection
) -> None:
    shared = ("SELECT 1 FROM runtime_brokers WHERE id = $1 FOR KEY SHARE", world.broker.id)
    made = (AGENT, world.project.id, world.broker.id)
    told = await met(other, watcher, lambda: world.storage.delete_broker(world.broker.id), shared, made)
    assert isinstance(told, InvalidState)


async def test_agents_are_made_on_one_broker_without_waiting_for_each_other(world: World, other: Connection) -> None:
    shared = ("SELECT 1 FROM runtime_brokers WHERE id = $1 FOR KEY SHARE", world.broker.id)
    async with unfinished(other, shared):
        with anyio.fail_after(4):
            await world.creation()


async def test_no_project_is_deleted_in_which_an_agent_is_being_made(
    world: World, other: Connection, watcher: Connection
) -> None:
    """It would be deleted with those that are deleted already."""
    made = (AGENT, world.project.id, world.broker.id)
    told = await met(other, watcher, lambda: world.storage.delete_project(world.project.id), made)
    assert isinstance(told, InvalidState)
    [late] = await world.storage.list_agents(AgentFilter(slug="late"), Page())
    assert late.slug == "late"


async def test_a_join_that_meets_the_deletion_of_its_broker_is_refused(
    world: World, other: Connection, watcher: Connection
) -> None:
    asked = world.registration()
    broker = (await world.storage.register_broker(asked)).broker
    join = BrokerJoin(broker_id=BrokerId(broker.id), token_hash=asked.token_hash, key_id=uuid(), sealed=b"sealed")
    told = await met(other, watcher, lambda: world.storage.join_broker(join), (DELETED, broker.id))
    assert isinstance(told, InvalidJoinToken)
    assert await other.fetchval("SELECT count(*) FROM broker_secrets WHERE broker_id = $1", broker.id) == 0


async def test_one_name_registered_at_two_hubs_at_once_is_one_broker(world: World, postgres_dsn: str) -> None:
    again = await opened(Target(dsn=postgres_dsn), Settings(), OTHER)
    registered: list[Registered] = []

    async def register(storage: Storage, name: str) -> None:
        asked = world.registration(name=name, slug=name)
        registered.append(await storage.register_broker(asked))

    try:
        for n in range(10):
            async with anyio.create_task_group() as tasks:
                for storage in (world.storage, again, world.storage):
                    tasks.start_soon(register, storage, f"broker-{n}")
            assert len({one.broker.id for one in registered}) == 1
            assert sorted(one.reregistered for one in registered) == [False, True, True]
            registered.clear()
    finally:
        await again.close()


# -- renewal -------------------------------------------------------------------------------------------------------


async def sessions(world: World, count: int) -> list[Session]:
    made = []
    for _ in range(count):
        broker = await world.new_broker()
        made.append((await world.storage.claim_session(world.session_claim(broker_id=broker.id))).session)
    return made


async def test_a_broker_whose_row_somebody_holds_keeps_no_other_from_being_renewed(
    world: World, other: Connection
) -> None:
    """A hub that stands still in the middle of a transaction would else have all brokers of all others reaped."""
    held = await sessions(world, 3)
    ids = [one.broker_id for one in held]
    before = await renewed_at(other, ids)
    locked = ("SELECT 1 FROM runtime_brokers WHERE id = $1 FOR UPDATE", held[1].broker_id)
    async with unfinished(other, locked):
        assert await world.storage.renew(held) == ()
        with anyio.fail_after(2):
            assert await world.storage.beat(world.node, draining=False)
    after = await renewed_at(other, ids)
    assert [after[one] > before[one] for one in ids] == [True, False, True]
    assert await world.storage.renew(held) == ()
    assert (await renewed_at(other, ids))[ids[1]] > before[ids[1]]


async def renewed_at(other: Connection, ids: Sequence[str]) -> dict[str, int]:
    rows = await other.fetch("SELECT id, renewed_at FROM runtime_brokers WHERE id = ANY($1)", ids)
    return {row[0]: row[1] for row in rows}


async def test_a_session_that_is_being_replaced_is_told_to_have_lost_when_it_has(
    world: World, other: Connection
) -> None:
    [session] = await sessions(world, 1)
    newer = ("UPDATE runtime_brokers SET connected_session_id = gen_random_uuid() WHERE id = $1", session.broker_id)
    async with unfinished(other, newer):
        assert await world.storage.renew([session]) == ()
        await other.execute("COMMIT")
    assert await world.storage.renew([session]) == (session.session_id,)


async def test_a_conflict_that_is_over_is_cleared_and_no_locked_row_keeps_a_sweep(
    world: World, other: Connection
) -> None:
    held = [one.broker_id for one in await sessions(world, 2)]
    calm = "UPDATE runtime_brokers SET conflict = true, connected_at = now() - interval '121 s' WHERE id = ANY($1)"
    await other.execute(calm, held)
    await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, conflict=True))  # connected just now
    async with unfinished(other, ("SELECT 1 FROM runtime_brokers WHERE id = $1 FOR UPDATE", held[0])):
        with anyio.fail_after(4):
            await world.storage.reap(world.node, lost_after=600.0, stale_after=600.0)
    fighting = {broker.id for broker in await world.storage.list_brokers(Page()) if broker.conflict}
    assert fighting == {held[0], world.broker.id}
