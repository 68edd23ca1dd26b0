"""Transactions of two hubs that meet in the middle: each statement waits for what it must not overlook."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from kernel.config import Settings
from kernel.intent import Op, State
from kernel.node import NodeId
from kernel.storage import IdempotencyKey, Recorded, Recording, Storage
from kernel.testing.storage.world import World
from plugins.storage.postgres.connecting import Connection, Target, connect
from plugins.storage.postgres.opening import opened

pytestmark = pytest.mark.anyio

NODE = NodeId("00000000-0000-4000-8000-000000000001")
OTHER = NodeId("00000000-0000-4000-8000-000000000002")


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[World]:
    storage = await opened(Target(dsn=postgres_dsn), Settings(), NODE)
    yield await World.built(storage)
    await storage.close()


@pytest.fixture
async def other(postgres_dsn: str) -> AsyncIterator[Connection]:
    """Another hub's connection, in whose transaction the test says when what happens."""
    connection = await connect(Target(dsn=postgres_dsn, deadline=60.0), "other", NODE)
    yield connection
    connection.terminate()


@pytest.fixture
async def watcher(postgres_dsn: str) -> AsyncIterator[Connection]:
    """In no transaction: inside of one the server's activity stands still."""
    connection = await connect(Target(dsn=postgres_dsn), "watcher", NODE)
    yield connection
    connection.terminate()


async def waits_for_a_lock(watcher: Connection, application: str) -> None:
    """Until a statement of these connections stands in line behind another transaction."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE $1"
    with anyio.fail_after(30):
        while not await watcher.fetchval(asked, f"{application}%"):
            await anyio.sleep(0.02)


async def test_a_claim_and_a_newer_session_that_meet_leave_nothing_behind(
    world: World, other: Connection, watcher: Connection
) -> None:
    """The newer session is written and not committed yet when the older one claims: the claim waits, and takes nothing.
    Else its work would be in the hands of a session that nobody drives again."""
    intent = await world.record(Op.STOP, await world.new_agent())
    await other.execute("BEGIN")
    await other.execute(
        "UPDATE runtime_brokers SET connection_epoch = connection_epoch + 1, connected_session_id = gen_random_uuid()"
        " WHERE id = $1",
        world.broker.id,
    )
    async with anyio.create_task_group() as tasks:

        async def claim() -> None:
            claims = await world.claim()
            assert (claims.stale, claims.intents) == (True, ())

        tasks.start_soon(claim)
        await waits_for_a_lock(watcher, "pointsman-owner")
        await other.execute("COMMIT")
    assert (await world.read(intent.id)).state is State.PENDING


async def test_one_key_at_two_hubs_makes_one_intent(world: World, postgres_dsn: str) -> None:
    """Also when both ask at the same moment, on the way of every call."""
    again = await opened(Target(dsn=postgres_dsn), Settings(), OTHER)
    try:
        for n in range(10):
            agent = await world.new_agent()
            key = IdempotencyKey(principal="user:test", key=f"key {n}", request_hash="same")
            asked = [Recording(intents=(world.intent(Op.START, agent),), key=key) for _ in range(2)]
            answers = await _recorded_at_once((world.storage, asked[0]), (again, asked[1]))
            (made,) = [one.id for answer in answers for one in answer.intents]
            (told,) = [answer.repeated.intent_id for answer in answers if answer.repeated]
            assert told == made
    finally:
        await again.close()


async def _recorded_at_once(*asked: tuple[Storage, Recording]) -> list[Recorded]:
    answers: list[Recorded] = []

    async def record(storage: Storage, recording: Recording) -> None:
        answers.append(await storage.record(recording))

    async with anyio.create_task_group() as tasks:
        for one in asked:
            tasks.start_soon(record, *one)
    return answers
