"""Two hubs do everything at once to the same few agents: each intent's life is one unbroken story all the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import pairwise
from typing import Any

import anyio
import pytest

from kernel.agent import Agent, AgentChange, Phase
from kernel.broker import Broker, Session
from kernel.config import Settings
from kernel.errors import PointsmanError, StorageUnavailable
from kernel.intent import Intent, IntentId, Op, State
from kernel.storage import ClaimRequest, Held, IdempotencyKey, Known, PutBack, Recording, Storage
from kernel.testing.postgres import Server
from kernel.testing.storage.world import ALL, FAILURE, World
from kernel.transition import Transition
from plugins.storage.postgres.connecting import Connection, Target
from plugins.storage.postgres.opening import opened
from tests.cluster.steering import NODE, OTHER, other, watcher, world
from tests.harness.pooler import Pooler

__all__ = ["other", "watcher", "world"]
pytestmark = pytest.mark.anyio

WORKERS, STEPS = 10, 90
CONTROL = (Op.START, Op.STOP, Op.RESTART, Op.SUSPEND)


@pytest.fixture
async def storages(world: World, postgres_dsn: str) -> AsyncIterator[tuple[Storage, Storage]]:
    again = await opened(Target(dsn=postgres_dsn), Settings(), OTHER)
    yield world.storage, again
    await again.close()


class Storm:
    """Knows what it asked for and was told; what it does next the dice say."""

    def __init__(self, world: World, storages: tuple[Storage, Storage], seed: int) -> None:
        self.world = world
        self.storages = storages
        self.dice = random.Random(seed)
        self.brokers: list[Broker] = []
        self.agents: list[Agent] = []
        self.sessions: list[Session] = []
        self.known: list[IntentId] = []
        self.taken: list[tuple[Session, Intent]] = []
        self.told: list[Transition] = []
        self.rough = False
        """Calls are given up, and connections end."""

    async def begin(self) -> None:
        for _ in range(2):
            broker = await self.world.new_broker()
            self.brokers.append(broker)
            self.agents += [await self.world.new_agent(runtime_broker_id=broker.id) for _ in range(12)]
            await self.connect()

    @property
    def storage(self) -> Storage:
        return self.dice.choice(self.storages)

    async def step(self) -> None:
        steps: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (8, self.record), (8, self.claim), (8, self.end), (3, self.put_back), (2, self.cancel), (2, self.expire),
            (2, self.connect), (1, self.release), (1, self.redrive), (2, self.local), (2, self.in_hand),
            (1, self.recover), (1, self.beside),
        ]  # fmt: skip
        weights, calls = zip(*steps, strict=True)
        (call,) = self.dice.choices(calls, weights)
        patience = self.dice.uniform(0.0, 0.1) if self.rough and self.dice.random() < 0.2 else 30.0
        try:
            with anyio.move_on_after(patience):
                await call()
        except StorageUnavailable:
            assert self.rough, "nothing broke"
        except PointsmanError:
            pass

    # -- what hubs do ------------------------------------------------------------------------------------------------

    async def record(self) -> None:
        agent = self.dice.choice(self.agents)
        op = self.dice.choice((*CONTROL, Op.MESSAGE, Op.MESSAGE))
        new, key = self.world.intent(op, agent), None
        if self.dice.random() < 0.3:
            key = IdempotencyKey(principal="user:test", key=str(self.dice.randrange(20)), request_hash="same")
            new = self.world.intent(op, agent, principal=f"with key {key.key}")
        supersedes = op in (Op.STOP, Op.SUSPEND)
        answer = b"told" if self.dice.random() < 0.3 else None
        recording = Recording(intents=(new,), key=key, supersedes_starts=supersedes, answer=answer if key else None)
        recorded = await self.storage.record(recording)
        self.told += recorded.transitions
        self.known += [one.id for one in recorded.intents]

    async def connect(self) -> None:
        broker = self.dice.choice(self.brokers)
        claimed = await self.storage.claim_session(self.world.session_claim(broker_id=broker.id))
        self.told += claimed.redriven.transitions
        self.sessions.append(claimed.session)

    async def claim(self) -> None:
        session = self._session()
        ids = tuple(self.dice.sample(self.known, min(3, len(self.known)))) if self.dice.random() < 0.5 else None
        request = ClaimRequest(session=session, limit=4, ops=ALL, ids=ids, lazily=self.dice.random() < 0.5)
        claims = await self.storage.claim(request)
        self.told += claims.transitions
        self.taken += [(session, intent) for intent in claims.intents]

    async def end(self) -> None:
        if not self.taken:
            return
        session, intent = self.dice.choice(self.taken)
        state = self.dice.choice((State.DONE, State.FAILED))
        phase = self.dice.choice((Phase.RUNNING, Phase.RUNNING, Phase.STOPPED))
        change = AgentChange(phase=phase) if intent.op is not Op.MESSAGE else None
        ending = self.world.ending(intent, session=session, state=state, attempt=intent.attempts, change=change)
        self.told += (await self.storage.end(ending)).transitions

    async def put_back(self) -> None:
        if not self.taken:
            return
        session, intent = self.dice.choice(self.taken)
        back = PutBack(intent_id=intent.id, op=intent.op, session=session, attempt=intent.attempts, reason="later")
        self.told += (await self.storage.put_back(back)).transitions

    async def cancel(self) -> None:
        if self.known:
            cancelled = await self.storage.cancel(self.dice.choice(self.known[-10:]), self.world.node)
            self.told += cancelled.transitions
            assert cancelled.outcome != "cancel_requested" or cancelled.intent.state is State.IN_PROGRESS

    async def expire(self) -> None:
        ids = self.dice.sample(self.known[-10:], min(2, len(self.known[-10:])))
        self.told += (await self.storage.expire(ids, FAILURE, self.world.node)).transitions

    async def release(self) -> None:
        released = await self.storage.release_session(self._session(), 1006, self.known[-5:])
        self.told += released.changed.transitions

    async def redrive(self) -> None:
        self.told += (await self.storage.redrive(self.world.node, 100)).transitions

    async def local(self) -> None:
        session = self._session()
        agent = self.dice.choice([one for one in self.agents if one.runtime_broker_id == session.broker_id])
        new = self.world.intent(Op.STOP, agent)
        ending = self.world.ending(new, session=session, change=AgentChange(phase=Phase.STOPPED))
        settled = await self.storage.insert_ended(new, ending)
        assert settled.accepted
        self.told += settled.transitions
        self.known.append(new.id)

    async def in_hand(self) -> None:
        """A LOCAL call that is given its row."""
        session = self._session()
        agent = self.dice.choice([one for one in self.agents if one.runtime_broker_id == session.broker_id])
        new = self.world.intent(Op.STOP, agent, claim=session, attempts=1)
        recorded = await self.storage.record(Recording(intents=(new,)))
        self.told += recorded.transitions
        self.known.append(new.id)
        self.taken += [(session, one) for one in recorded.intents if one.state is State.IN_PROGRESS]

    async def recover(self) -> None:
        session = self._session()
        mine = [intent for held_by, intent in self.taken if held_by == session][-5:]
        held = tuple(
            Held(intent_id=one.id, op=one.op, broker_id=session.broker_id, attempt=one.attempts) for one in mine
        )
        recovered = await self.storage.recover(Known(session=session, in_hand=held))
        self.told += recovered.transitions
        self.taken += [(session, intent) for intent in recovered.taken]

    async def beside(self) -> None:
        """What goes on at the same time and waits for the same rows."""
        await self.storage.renew(self.sessions[-4:])
        self.told += (await self.storage.expire_due(self.world.node, 10)).transitions

    def _session(self) -> Session:
        """Mostly one of the newest."""
        return self.dice.choice(self.sessions[-3:] if self.dice.random() < 0.8 else self.sessions)


async def raged(storm: Storm) -> None:
    """All of it has been done."""

    async def work() -> None:
        for _ in range(STEPS):
            await storm.step()

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            for _ in range(WORKERS):
                tasks.start_soon(work)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_two_hubs_do_at_once_each_story_is_whole(
    world: World, storages: tuple[Storage, Storage], other: Connection, seed: int
) -> None:
    storm = Storm(world, storages, seed)
    await storm.begin()
    await raged(storm)
    await all_is_driven_again(storm)
    kept = await each_story_is_whole(storm, other)
    told = Counter((one.intent_id, one.n) for one in storm.told)
    assert set(told) == {(intent_id, step["n"]) for intent_id, steps in kept.items() for step in steps}
    assert max(told.values()) == 1, "each step is told once"
    assert set(kept) == set(storm.known)
    await nothing_is_in_nobodys_hands(other)
    await one_key_made_one_intent(other)


async def test_behind_a_pooler_each_story_is_whole_too(postgres: Server, postgres_dsn: str, other: Connection) -> None:
    """Statements of one hub go to the sessions of all: what a transaction needs is in the transaction."""
    with Pooler(postgres.port) as pooler:
        database = postgres_dsn.rpartition("/")[2].partition("?")[0]
        target = Target(dsn=pooler.dsn(database), listen_dsn=postgres_dsn, statement_cache_size=0, deadline=20.0)
        storages = [await opened(target, Settings(), node) for node in (NODE, OTHER)]
        try:
            storm = Storm(await World.built(storages[0]), (storages[0], storages[1]), 1)
            await storm.begin()
            await raged(storm)
            await all_is_driven_again(storm)
            assert set(await each_story_is_whole(storm, other)) == set(storm.known)
            await nothing_is_in_nobodys_hands(other)
            await one_key_made_one_intent(other)
        finally:
            for storage in storages:
                await storage.close()


@pytest.mark.parametrize("seed", range(3))
async def test_calls_given_up_and_connections_that_end_break_no_story(
    world: World, storages: tuple[Storage, Storage], other: Connection, watcher: Connection, seed: int
) -> None:
    storm = Storm(world, storages, seed)
    await storm.begin()
    storm.rough = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ended_now_and_then, watcher, storm.dice)
        await raged(storm)
        tasks.cancel_scope.cancel()
    storm.rough = False
    assert sum(storage.breaks for storage in storages) > 0
    await all_is_driven_again(storm)
    kept = await each_story_is_whole(storm, other)
    assert {one.intent_id for one in storm.told} <= set(kept)
    assert set(storm.known) <= set(kept), "what was acknowledged is there"
    await nothing_is_in_nobodys_hands(other)
    await one_key_made_one_intent(other)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND application_name LIKE 'pointsman-%'"
    with anyio.fail_after(30):
        while await watcher.fetchval(f"{idle} AND pid <> pg_backend_pid()"):
            await anyio.sleep(0.02)


async def ended_now_and_then(watcher: Connection, dice: random.Random) -> None:
    """One of the hubs' connections after the other."""
    one = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name ~ '^pointsman-(pool|writer|owner|ender|reader|upkeep)' ORDER BY random() LIMIT 1"
    )
    while True:
        await anyio.sleep(dice.uniform(0.0, 0.1))
        await watcher.execute(one)


async def all_is_driven_again(storm: Storm) -> None:
    while (changed := await storm.world.storage.redrive(storm.world.node, 100)).intents:
        storm.told += changed.transitions


async def each_story_is_whole(storm: Storm, other: Connection) -> dict[str, list[Any]]:
    """Step follows upon step, and the last one is what the row says."""
    kept: dict[str, list[Any]] = {}
    for row in await other.fetch("SELECT * FROM transitions ORDER BY intent_id, n"):
        kept.setdefault(row["intent_id"], []).append(row)
    found = await storm.world.storage.find_intents(list(kept))  # type: ignore[arg-type]
    assert len(found) == len(kept)
    for intent in found:
        steps = kept[intent.id]
        assert [step["n"] for step in steps] == list(range(1, len(steps) + 1))
        assert all(step["from_state"] == before["to_state"] for before, step in pairwise(steps)), [
            (
                step["n"],
                step["from_state"],
                step["to_state"],
                step["reason"],
                step["epoch"],
                step["attempt"],
                step["at"],
            )
            for step in steps
        ]
        assert steps[-1]["to_state"] == intent.state
        assert sum(State(step["to_state"]).ended for step in steps[1:]) == intent.state.ended
        assert (intent.ended_at is not None) == intent.state.ended
    return kept


async def nothing_is_in_nobodys_hands(other: Connection) -> None:
    lost = """
        SELECT id FROM (
            SELECT id, broker_id, claimed_session, claimed_epoch FROM broker_dispatch WHERE state = 'in_progress'
            UNION ALL
            SELECT id, broker_id, claimed_session, claimed_epoch FROM messages WHERE dispatch_state = 'in_progress'
        ) AS held
        WHERE NOT EXISTS (
            SELECT 1 FROM runtime_brokers b WHERE b.id = held.broker_id
            AND b.connected_session_id = held.claimed_session AND b.connection_epoch = held.claimed_epoch)
    """
    assert await other.fetch(lost) == []


async def one_key_made_one_intent(other: Connection) -> None:
    made = """
        SELECT principal, count(*) FROM (SELECT principal FROM broker_dispatch UNION ALL SELECT principal FROM messages)
        AS made WHERE principal LIKE 'with key %' GROUP BY principal HAVING count(*) > 1
    """
    assert await other.fetch(made) == []
