"""What the SQLite backend does as time passes: a clock that stands until it is told to go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernel import (
    AgentId,
    AlreadyExists,
    BrokerEdit,
    Clock,
    IdempotencyKey,
    Instant,
    IntentFilter,
    Node,
    NodeId,
    Op,
    Page,
    Phase,
    Recording,
    Report,
    State,
    Storage,
)
from kernel.testing.storage.world import World, ids, uuid
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage

pytestmark = pytest.mark.anyio
KEY = IdempotencyKey(principal="user:test", key="key", request_hash="hash")


class Standing(Clock):
    def __init__(self) -> None:
        self.at = 1_800_000_000_000_000

    def now(self) -> Instant:
        return Instant(self.at)

    def pass_(self, seconds: float) -> None:
        self.at += int(seconds * 1_000_000)


@pytest.fixture
def clock() -> Standing:
    return Standing()


@pytest.fixture
async def storage(tmp_path: Path, clock: Standing) -> AsyncIterator[Storage]:
    options = Options(path=str(tmp_path / "hub.db"), clock=clock, lost_after=6.0, stale_after=15.0)
    storage = SqliteStorage(await opened(options))
    yield storage
    await storage.close()


@pytest.fixture
async def world(storage: Storage) -> World:
    return await World.built(storage)


async def test_a_broker_is_online_while_its_node_beats_and_renews(world: World, clock: Standing) -> None:
    for _ in range(6):
        clock.pass_(5.0)
        await world.storage.beat(world.node, draining=False)
        await world.storage.renew([world.session])
        assert (await world.read_broker()).online


async def test_a_broker_that_is_not_renewed_is_not_online(world: World, clock: Standing) -> None:
    for _ in range(4):
        clock.pass_(5.0)
        await world.storage.beat(world.node, draining=False)
    broker = await world.read_broker()
    assert (broker.online, broker.missing_for) == (False, 20.0)


async def test_a_broker_whose_node_is_silent_is_not_online(world: World, clock: Standing) -> None:
    clock.pass_(7.0)
    await world.storage.renew([world.session])
    broker = await world.read_broker()
    assert (broker.online, broker.missing_for) == (False, 0.0)


async def test_a_broker_that_left_is_missing_since_then(world: World, clock: Standing) -> None:
    await world.disconnect()
    clock.pass_(3.0)
    assert (await world.read_broker()).missing_for == 3.0


async def test_a_broker_that_never_came_is_not_missing(world: World, clock: Standing) -> None:
    world.broker = await world.new_broker()
    clock.pass_(100.0)
    assert (await world.read_broker()).missing_for is None


async def test_a_key_is_forgotten_after_a_day(world: World, clock: Standing) -> None:
    agent = await world.new_agent()
    await world.storage.record(Recording(intents=(world.intent(Op.STOP, agent),), key=KEY))
    clock.pass_(24 * 3600 - 1)
    assert await world.storage.find_key(KEY) is not None
    clock.pass_(2)
    assert await world.storage.find_key(KEY) is None
    other = IdempotencyKey(principal=KEY.principal, key=KEY.key, request_hash="other")
    recorded = await world.storage.record(Recording(intents=(world.intent(Op.START, agent),), key=other))
    assert recorded.repeated is None
    assert await world.storage.find_key(other) is not None


async def test_a_nonce_is_forgotten_after_ten_minutes(world: World, clock: Standing) -> None:
    assert await world.storage.use_nonce(world.broker.id, "n")
    clock.pass_(599)
    assert not await world.storage.use_nonce(world.broker.id, "n")
    clock.pass_(2)
    assert await world.storage.use_nonce(world.broker.id, "n")
    assert not await world.storage.use_nonce(world.broker.id, "n")


async def test_keys_nonces_tokens_and_lost_nodes_are_pruned(world: World, clock: Standing) -> None:
    agent = await world.new_agent()
    await world.storage.record(Recording(intents=(world.intent(Op.STOP, agent),), key=KEY))
    await world.storage.use_nonce(world.broker.id, "n")
    await world.storage.join_node(Node(id=NodeId(uuid()), started_at=clock.now(), beat_at=clock.now(), version="1"))
    assert await world.storage.prune(3600.0, 100) == 0
    clock.pass_(26 * 3600)
    assert await world.storage.prune(3600.0, 100) == 4, "a key, a nonce, a join token, the node that was lost"
    assert await world.storage.prune(3600.0, 100) == 0


async def test_messages_that_wait_over_five_minutes_are_told(world: World, clock: Standing) -> None:
    agent = await world.new_agent(Phase.STOPPED)
    await world.record(Op.MESSAGE, agent, created_at=clock.now())
    clock.pass_(299)
    assert (await world.storage.unfinished()).stuck_messages == 0
    clock.pass_(2)
    assert (await world.storage.unfinished()).stuck_messages == 1


async def test_what_is_seen_without_news_is_stamped_every_ten_seconds(world: World, clock: Standing) -> None:
    agent = await world.new_agent(Phase.RUNNING, run_id=uuid())
    report = Report(agent_id=agent.id, source="heartbeat", run_id=agent.run_id)
    await world.storage.report(report)
    first = (await world.read_agent(agent.id)).last_seen
    clock.pass_(5)
    before = await world.storage.statement_count()
    await world.storage.report(report)
    assert await world.storage.statement_count() == before
    clock.pass_(5)
    await world.storage.report(report)
    assert (first, (await world.read_agent(agent.id)).last_seen) == (clock.now() - 10_000_000, clock.now())


# -- one hub on the file ----------------------------------------------------------------------------------------


async def test_whoever_joins_has_the_file_alone(world: World, clock: Standing) -> None:
    intent = await world.claimed(Op.STOP, await world.new_agent())
    said = await world.claimed(Op.MESSAGE, await world.new_agent())
    node = NodeId(uuid())
    joined = await world.storage.join_node(Node(id=node, started_at=clock.now(), beat_at=clock.now(), version="2"))
    assert sorted(ids(joined.intents)) == sorted([intent.id, said.id])
    assert {(one.state, one.attempts) for one in joined.intents} == {(State.PENDING, 1)}
    assert {step.reason for step in joined.transitions} == {"owner_lost"}
    assert [one.id for one in await world.storage.list_nodes() if one.lost_at is None] == [node]
    broker = await world.read_broker()
    assert (broker.online, broker.connected_hub_id, broker.missing_for) == (False, None, 0.0)
    assert not (await world.end(intent)).accepted
    assert not await world.storage.beat(world.node, draining=False)


async def test_joining_again_keeps_what_this_node_holds(world: World, clock: Standing) -> None:
    intent = await world.claimed(Op.STOP, await world.new_agent())
    joined = await world.storage.join_node(
        Node(id=world.node, started_at=clock.now(), beat_at=clock.now(), version="1")
    )
    assert joined.intents == ()
    assert (await world.end(intent)).accepted


async def test_a_crash_of_the_broker_is_counted_over_a_restart_of_the_hub(world: World, clock: Standing) -> None:
    await world.connect(instance="one")
    intent = await world.claimed(Op.STOP, await world.new_agent())
    old = world.session
    await world.storage.release_session(old, 1006, [intent.id])
    world.node = NodeId(uuid())
    await world.storage.join_node(Node(id=world.node, started_at=clock.now(), beat_at=clock.now(), version="1"))
    await world.connect(instance="two")
    assert (await world.read(intent.id)).broker_crashes == 1


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    options = Options(path=str(tmp_path / "again.db"))
    first = SqliteStorage(await opened(options))
    world = await World.built(first)
    agent = await world.new_agent()
    done = await world.claimed(Op.STOP, agent)
    await world.end(done)
    pending = await world.record(Op.MESSAGE, agent)
    await first.close()
    second = SqliteStorage(await opened(options))
    world.storage = second
    assert (await world.read(done.id)).state is State.DONE
    assert await world.read(pending.id) == pending
    assert (await world.record(Op.STOP, agent)).seq > pending.seq
    assert ids(await second.list_intents(IntentFilter(), Page()))[1:] == [pending.id, done.id]
    with pytest.raises(AlreadyExists):
        await world.new_agent(slug=agent.slug, id=AgentId(uuid()))
    await second.close()


async def test_a_conflict_is_over_when_one_session_lasted(world: World, clock: Standing) -> None:
    """Until then each of the two was told within half a minute that the other had taken its place."""
    await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, conflict=True))
    for seconds, conflict in ((119.0, True), (2.0, False)):
        clock.pass_(seconds)
        await world.storage.beat(world.node, draining=False)
        await world.storage.renew([world.session])
        assert (await world.storage.reap(world.node, lost_after=6.0, stale_after=15.0)).cleared == ()
        assert (await world.read_broker()).conflict == conflict
