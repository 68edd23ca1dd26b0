"""What somebody holds locked, who stands still in the middle of a transaction, delays nobody but those who need it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
import sqlalchemy as sa

from kernel.agent import Agent, AgentChange
from kernel.config import Settings
from kernel.errors import StorageUnavailable
from kernel.intent import Intent, Op, State
from kernel.storage import AgentEdit, IdempotencyKey, Recorded, Recording
from kernel.testing.storage.world import World, ids
from plugins.storage.postgres.connecting import Connection, Target
from plugins.storage.postgres.opening import opened
from plugins.storage.schema import Id
from tests.cluster.steering import NODE, other, unfinished, watcher, world

__all__ = ["other", "watcher", "world"]
pytestmark = pytest.mark.anyio

AGENT = "SELECT 1 FROM agents WHERE id = $1 FOR UPDATE"
INTENT = "SELECT 1 FROM broker_dispatch WHERE id = $1 FOR UPDATE"
MESSAGE = "SELECT 1 FROM messages WHERE id = $1 FOR UPDATE"
KEY = "INSERT INTO idempotency_keys (principal, key, request_hash, created) VALUES ('user:test', 'one', 'other', now())"
CALM = AgentChange(message="calm")
SOON = 4.0
"""Seconds: less than a call may take at all."""


async def test_an_agent_that_somebody_holds_delays_no_other_agents_end(world: World, other: Connection) -> None:
    held, *others = [await world.new_agent() for _ in range(6)]
    for agent in (held, *others):
        await world.record(Op.STOP, agent)
    first, *rest = (await world.claim()).intents
    assert first.agent_id == held.id
    settled = []

    async def end_held() -> None:
        settled.append(await world.end(first, change=CALM))

    async with unfinished(other, (AGENT, held.id)), anyio.create_task_group() as tasks:
        tasks.start_soon(end_held)
        await anyio.sleep(0.05)
        with anyio.fail_after(SOON):
            for intent in rest:
                assert (await world.end(intent, change=CALM)).accepted
            new = world.intent(Op.STOP, others[0])
            assert (await world.storage.insert_ended(new, world.ending(new, change=CALM))).accepted
        assert settled == []
        await other.execute("COMMIT")
    assert settled[0].accepted
    assert (await world.read_agent(held.id)).message == "calm"


async def test_ends_that_go_together_with_one_that_must_wait_do_not_wait(world: World, other: Connection) -> None:
    agents = [await world.new_agent() for _ in range(8)]
    for agent in agents:
        await world.record(Op.STOP, agent)
    intents = (await world.claim()).intents
    ended: list[str] = []

    async def end(n: int) -> None:
        assert (await world.end(intents[n], change=CALM)).accepted
        ended.append(intents[n].id)

    async with unfinished(other, (AGENT, agents[3].id)), anyio.create_task_group() as tasks:
        for n in range(8):
            tasks.start_soon(end, n)
        with anyio.fail_after(SOON):
            while len(ended) < 7:
                await anyio.sleep(0.02)
        await other.execute("COMMIT")
    assert len(ended) == 8


async def test_an_intent_that_somebody_holds_delays_no_other_agents_claim(world: World, other: Connection) -> None:
    held, free = [await world.record(Op.STOP, await world.new_agent()) for _ in range(2)]
    async with unfinished(other, (INTENT, held.id)):
        with anyio.fail_after(SOON):
            assert ids((await world.claim()).intents) == [free.id]
    assert ids((await world.claim()).intents) == [held.id]


async def test_a_message_that_somebody_holds_delays_no_command_of_the_same_signal(
    world: World, other: Connection
) -> None:
    said, stop = [await world.record(op, await world.new_agent()) for op in (Op.MESSAGE, Op.STOP)]
    told = (said.id, stop.id)
    async with unfinished(other, (MESSAGE, said.id)):
        with anyio.fail_after(SOON):
            claims = await world.claim(ids=told)
        assert ids(claims.intents) == [stop.id]
        assert [step.intent_id for step in claims.transitions] == [stop.id]
    assert ids((await world.claim(ids=told)).intents) == [said.id]


async def test_a_key_that_somebody_holds_delays_no_other_call(world: World, other: Connection) -> None:
    agent = await world.new_agent()
    key = IdempotencyKey(principal="user:test", key="one", request_hash="same")
    keyed = Recording(intents=(world.intent(Op.STOP, agent),), key=key)
    recorded: list[Recorded] = []

    async def record() -> None:
        recorded.append(await world.storage.record(keyed))

    async with unfinished(other, (KEY,)), anyio.create_task_group() as tasks:
        tasks.start_soon(record)
        await anyio.sleep(0.05)
        with anyio.fail_after(SOON):
            for _ in range(5):
                await world.record(Op.STOP, agent)
                await world.record(Op.MESSAGE, agent)
        assert recorded == []
        await other.execute("ROLLBACK")
    assert ids(recorded[0].intents) == [keyed.intents[0].id]


# -- longer than a call may take ---------------------------------------------------------------------------------


@pytest.fixture
async def hasty(postgres_dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Its statements may take a second, unless the test says so."""
    storage = await opened(Target(dsn=postgres_dsn, deadline=getattr(request, "param", 1.0)), Settings(), NODE)
    yield await World.built(storage)
    await storage.close()


async def test_an_end_that_waits_too_long_is_not_written_and_can_be_repeated(hasty: World, other: Connection) -> None:
    held, free = [await hasty.new_agent() for _ in range(2)]
    for agent in (held, free):
        await hasty.record(Op.STOP, agent)
    first, second = (await hasty.claim()).intents
    async with unfinished(other, (AGENT, held.id)):
        with pytest.raises(StorageUnavailable):
            await hasty.end(first, change=CALM)
        assert (await hasty.end(second, change=CALM)).accepted
    assert (await hasty.read(first.id)).state is State.IN_PROGRESS
    assert (await hasty.end(first, change=CALM)).accepted


async def test_what_waits_too_long_leaves_no_transaction_behind(
    hasty: World, other: Connection, watcher: Connection
) -> None:
    agent = await hasty.new_agent()
    async with unfinished(other, (AGENT, agent.id)):
        touch = sa.text("UPDATE agents SET message = 'touched' WHERE id = :id")
        with pytest.raises(StorageUnavailable):
            await hasty.storage.sql.run(touch.bindparams(sa.bindparam("id", agent.id, Id())))
        with pytest.raises(StorageUnavailable):
            await hasty.end(await hasty.claimed(Op.STOP, agent), change=CALM)
    open_ones = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pointsman-%' AND xact_start IS NOT NULL"
    )
    with anyio.fail_after(30):
        while await watcher.fetchval(f"{open_ones} AND pid <> pg_backend_pid()"):
            await anyio.sleep(0.02)


@pytest.mark.parametrize("hasty", [4.0], indirect=True)
async def test_what_somebody_holds_is_no_broken_connection(hasty: World, other: Connection) -> None:
    """Else one hub that stands still would keep all others from judging it. Nor are too many calls at once."""
    agent = await hasty.new_agent()
    before = hasty.storage.breaks
    refused: list[str] = []

    async def edit() -> None:
        try:
            await hasty.storage.edit_agent(AgentEdit(agent_id=agent.id, name="other"))
        except StorageUnavailable as fault:
            refused.append(str(fault))

    async with unfinished(other, (AGENT, agent.id)), anyio.create_task_group() as tasks:
        for _ in range(80):
            tasks.start_soon(edit)
    assert len(refused) == 80
    assert any("held a lock for too long" in one for one in refused)
    assert any("came free" in one for one in refused)
    assert hasty.storage.breaks == before


# -- two ends in one batch -----------------------------------------------------------------------------------------


async def test_of_two_ends_of_one_agent_in_one_batch_the_later_one_counts(world: World) -> None:
    """After a crash of the database the ends of one agent may be written again at once."""
    for _ in range(10):
        first = await in_hand(world, await world.new_agent())
        agent = await world.new_agent()
        ends = [(await in_hand(world, agent), AgentChange(message=f"end {number}")) for number in range(2)]
        told: list[str] = []

        async def end(intent: Intent, change: AgentChange, told: list[str] = told) -> None:
            settled = await world.end(intent, change=change)
            told.append(settled.agent.message or "" if settled.agent else "")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end, first, AgentChange(message="first"))
            await anyio.sleep(0)  # it is under way now, and the others go together in the next batch
            for intent, change in ends:
                tasks.start_soon(end, intent, change)
        assert told == ["first", "end 0", "end 1"]
        assert (await world.read_agent(agent.id)).message == "end 1"


async def in_hand(world: World, agent: Agent) -> Intent:
    new = world.intent(Op.STOP, agent, claim=world.session, attempts=1)
    (intent,) = (await world.storage.record(Recording(intents=(new,)))).intents
    return intent
