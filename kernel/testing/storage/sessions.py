"""Who holds a broker: claims, releases, renewals, and what each does to work in hand."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio
import pytest

from kernel.agent import Phase
from kernel.broker import BrokerId, SessionId
from kernel.errors import Invalid, NotFound, Overtaken
from kernel.intent import Intent, Op, State
from kernel.node import Node, NodeId
from kernel.storage import BrokerEdit, BrokerJoin, Progress, Reaped, SessionClaimed
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import World, ids, uuid

SILENCE = 1.0
"""Seconds: long enough that a beat is of now on a busy machine."""


class SessionContract(StorageContract):
    async def test_each_claim_raises_the_epoch(self, world: World) -> None:
        first, second = world.session, (await world.connect()).session
        assert (first.epoch, second.epoch) == (1, 2)

    async def test_the_epoch_grows_beyond_what_the_broker_has_seen(self, world: World) -> None:
        claimed = await world.connect(last_epoch=41)
        assert claimed.session.epoch == 42
        assert (await world.connect(last_epoch=7)).session.epoch == 43

    @pytest.mark.parametrize("epoch", [2**63 - 1, 2**63, 2**80])
    async def test_an_epoch_beyond_all_bounds_is_refused(self, world: World, epoch: int) -> None:
        with pytest.raises(Invalid):
            await world.storage.claim_session(world.session_claim(last_epoch=epoch))
        assert (await world.read_broker()).connection_epoch == world.session.epoch

    async def test_the_newest_claim_wins_and_names_the_former(self, world: World) -> None:
        old = world.session
        claimed = await world.connect(node_id=NodeId(uuid()))
        assert claimed.former == old
        assert claimed.broker.connected_session_id == claimed.session.session_id

    async def test_a_claim_names_the_process_that_claimed_last_wherever_it_did(self, world: World) -> None:
        """Of two processes with one identity each may know one node only."""
        world.broker = await world.new_broker()
        claimed = [await world.connect(instance=name, node_id=NodeId(uuid())) for name in ("a", "b", "b", None, "a")]
        assert [one.former_instance for one in claimed] == [None, "a", "b", "b", None]

    async def test_a_first_claim_names_no_former(self, world: World) -> None:
        world.broker = await world.new_broker()
        assert (await world.connect()).former is None

    async def test_a_claim_that_is_repeated_gets_the_same_epoch(self, world: World) -> None:
        session = SessionId(uuid())
        first = await world.connect(session_id=session)
        again = await world.connect(session_id=session)
        assert again.session == first.session
        assert again.former is None

    @pytest.mark.parametrize("broker_id", ["", "nonsense", "not-a-uuid", "0193b8e4-0000-7000-8000-00000000beef"])
    async def test_an_unknown_broker_cannot_be_claimed(self, world: World, broker_id: str) -> None:
        with pytest.raises(NotFound):
            await world.storage.claim_session(world.session_claim(broker_id=BrokerId(broker_id)))

    async def test_a_deleted_broker_cannot_be_claimed(self, world: World) -> None:
        await world.storage.delete_broker(world.broker.id)
        with pytest.raises(NotFound):
            await world.connect()

    async def test_of_claims_that_race_each_gets_its_own_epoch_and_one_holds(self, world: World) -> None:
        claimed: list[SessionClaimed] = []

        async def claim() -> None:
            claimed.append(await world.storage.claim_session(world.session_claim()))

        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(claim)
        epochs = sorted(one.session.epoch for one in claimed)
        assert epochs == list(range(2, 18))
        newest = max(claimed, key=lambda one: one.session.epoch)
        assert (await world.read_broker()).connected_session_id == newest.session.session_id
        assert len({one.former and one.former.session_id for one in claimed}) == 16

    async def test_a_claim_makes_online_what_the_socket_announced(self, world: World) -> None:
        await world.connect(capabilities=("dedupe", "epoch"), version="2", window=5, instance="one")
        broker = await world.read_broker()
        assert broker.online
        assert broker.missing_for is None
        assert (broker.capabilities, broker.version, broker.window) == (["dedupe", "epoch"], "2", 5)
        await world.connect(capabilities=())
        assert (await world.read_broker()).capabilities == []

    async def test_a_direct_session_never_makes_a_broker_online(self, world: World) -> None:
        await world.disconnect()
        await world.connect(kind="direct")
        assert not (await world.read_broker()).online

    async def test_a_direct_session_wins_only_what_nobody_holds(self, world: World) -> None:
        held = world.session
        with pytest.raises(Overtaken):
            await world.connect(kind="direct")
        assert (await world.read_broker()).connected_session_id == held.session_id
        await world.disconnect()
        direct = (await world.connect(kind="direct")).session
        with pytest.raises(Overtaken):
            await world.connect(kind="direct", node_id=NodeId(uuid()))
        assert direct.epoch == held.epoch + 1

    async def test_of_direct_claims_that_race_one_wins(self, world: World) -> None:
        await world.disconnect()
        won: list[SessionClaimed] = []

        async def claim() -> None:
            with contextlib.suppress(Overtaken):
                won.append(await world.storage.claim_session(world.session_claim(kind="direct")))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(claim)
        assert len(won) == 1

    async def test_a_socket_replaces_a_direct_session(self, world: World) -> None:
        await world.disconnect()
        direct = (await world.connect(kind="direct")).session
        claimed = await world.connect()
        assert claimed.former == direct
        assert claimed.session.epoch == direct.epoch + 1
        assert (await world.read_broker()).online
        assert await world.storage.renew([direct]) == (direct.session_id,)

    async def test_another_endpoint_ends_a_direct_session_and_no_socket(self, world: World) -> None:
        edit = BrokerEdit(broker_id=world.broker.id, endpoint="https://one.example")
        assert (await world.storage.edit_broker(edit)).endpoint == "https://one.example"
        assert (await world.read_broker()).connected_session_id == world.session.session_id
        await world.disconnect()
        direct = (await world.connect(kind="direct")).session
        await world.storage.edit_broker(edit)
        assert await world.storage.renew([direct]) == ()
        changed = await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, endpoint=""))
        assert (changed.endpoint, changed.connected_session_id) == (None, None)
        assert await world.storage.renew([direct]) == (direct.session_id,)

    async def test_a_heartbeat_never_makes_a_broker_online(self, world: World) -> None:
        await world.disconnect()
        broker = await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, heartbeat=True))
        assert broker.last_heartbeat is not None
        assert not broker.online

    async def test_a_join_never_makes_a_broker_online(self, world: World) -> None:
        registered = await world.storage.register_broker(asked := world.registration())
        join = BrokerJoin(broker_id=registered.broker.id, token_hash=asked.token_hash, key_id="k", sealed=b"s")
        assert not (await world.storage.join_broker(join)).online

    async def test_a_session_of_a_node_that_is_unknown_does_not_make_online(self, world: World) -> None:
        await world.connect(node_id=NodeId(uuid()))
        assert not (await world.read_broker()).online

    # -- release ---------------------------------------------------------------------------------------------------

    async def test_a_release_clears_and_stamps(self, world: World) -> None:
        released = await world.storage.release_session(world.session, 1000, [])
        broker = await world.read_broker()
        assert released.cleared
        assert not broker.online
        assert (broker.connected_hub_id, broker.connected_session_id) == (None, None)
        assert broker.left_orderly
        assert broker.missing_for is not None

    async def test_a_late_release_does_not_clear_a_newer_session(self, world: World) -> None:
        old = world.session
        newer = (await world.connect()).session
        released = await world.storage.release_session(old, 1006, [])
        broker = await world.read_broker()
        assert not released.cleared
        assert broker.online
        assert (broker.connected_session_id, broker.disconnect_code) == (newer.session_id, None)

    @pytest.mark.parametrize("other", ["node_id", "session_id", "epoch"])
    async def test_a_release_compares_node_session_and_epoch(self, world: World, other: str) -> None:
        value: Any = 99 if other == "epoch" else uuid()
        fields = {name: getattr(world.session, name) for name in world.session.__struct_fields__}
        stranger = type(world.session)(**{**fields, other: value})
        assert not (await world.storage.release_session(stranger, 1006, [])).cleared
        assert (await world.read_broker()).online

    async def test_a_second_release_clears_nothing(self, world: World) -> None:
        await world.disconnect()
        assert not (await world.storage.release_session(world.session, 1006, [])).cleared

    async def test_releases_and_claims_that_race_leave_the_newest_session(self, world: World) -> None:
        for _ in range(10):
            old, new = world.session, world.session_claim()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(world.storage.release_session, old, 1006, [])
                tasks.start_soon(world.storage.claim_session, new)
                tasks.start_soon(world.storage.release_session, old, 1006, [])
            broker = await world.read_broker()
            assert broker.connected_session_id == new.session_id
            assert broker.online
            world.session = type(old)(
                broker_id=broker.id,
                node_id=world.node,
                session_id=new.session_id,
                epoch=type(old.epoch)(broker.connection_epoch),
            )

    async def test_a_release_puts_back_what_the_session_had_in_hand(self, world: World) -> None:
        agent = await world.new_agent()
        control = await world.claimed(Op.STOP, agent)
        said = await world.claimed(Op.MESSAGE, agent)
        released = await world.storage.release_session(world.session, 1006, [])
        assert sorted(ids(released.changed.intents)) == sorted([control.id, said.id])
        for intent in released.changed.intents:
            assert (intent.state, intent.attempts, intent.claimed_by) == (State.PENDING, 1, None)
        assert {step.reason for step in released.changed.transitions} == {"link_lost"}

    async def test_a_release_that_clears_nothing_puts_nothing_back(self, world: World) -> None:
        old = world.session
        await world.connect()
        intent = await world.claimed(Op.STOP, await world.new_agent())
        released = await world.storage.release_session(old, 1006, [])
        assert released.changed.intents == ()
        assert (await world.read(intent.id)).state is State.IN_PROGRESS

    # -- what an older epoch left ----------------------------------------------------------------------------------

    async def test_a_claim_drives_again_what_older_epochs_left(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        claimed = await world.connect()
        assert ids(claimed.redriven.intents) == [intent.id]
        assert claimed.redriven.transitions[0].to_state == State.PENDING
        again = (await world.claim()).intents[0]
        assert (again.id, again.attempts, again.claimed_epoch) == (intent.id, 2, claimed.session.epoch)

    async def test_a_claim_leaves_other_brokers_work_alone(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        world.broker = await world.new_broker()
        assert (await world.connect()).redriven.intents == ()
        assert (await world.read(intent.id)).state is State.IN_PROGRESS

    # -- renewal, nodes, reap --------------------------------------------------------------------------------------

    async def test_renewal_names_those_that_lost(self, world: World) -> None:
        old = world.session
        new = (await world.connect()).session
        assert await world.storage.renew([old, new]) == (old.session_id,)
        assert await world.storage.renew([]) == ()

    async def test_a_join_takes_the_session_of_the_old_secret_away(self, world: World) -> None:
        """The next renewal tells its node, also when the signal was lost; the answer names whom to tell at once."""
        asked = world.registration(broker_id=world.broker.id, name=world.broker.name, slug=world.broker.slug)
        await world.storage.register_broker(asked)
        intent = await world.claimed(Op.STOP, await world.new_agent())
        join = BrokerJoin(broker_id=world.broker.id, token_hash=asked.token_hash, key_id="k", sealed=b"s")
        joined = await world.storage.join_broker(join)
        old = world.session
        assert (joined.connected_hub_id, joined.connected_session_id) == (old.node_id, old.session_id)
        broker = await world.read_broker()
        assert (broker.online, broker.connected_hub_id, broker.connected_session_id) == (False, None, None)
        assert broker.connection_epoch == old.epoch
        assert await world.storage.renew([old]) == (old.session_id,)
        assert (await world.claim()).stale
        assert not (await world.storage.release_session(old, 4409, [])).cleared
        claimed = await world.connect()
        assert claimed.session.epoch > old.epoch
        assert ids(claimed.redriven.intents) == [intent.id]

    async def test_a_join_of_a_broker_that_nobody_holds_leaves_how_it_left(self, world: World) -> None:
        asked = world.registration(broker_id=world.broker.id, name=world.broker.name, slug=world.broker.slug)
        await world.storage.register_broker(asked)
        await world.disconnect(code=1000)
        before = await world.read_broker()
        join = BrokerJoin(broker_id=world.broker.id, token_hash=asked.token_hash, key_id="k", sealed=b"s")
        assert (await world.storage.join_broker(join)).connected_session_id is None
        after = await world.read_broker()
        assert after.left_orderly
        assert after.disconnected_at == before.disconnected_at

    async def test_renewal_moves_the_renewed_instant_only(self, world: World) -> None:
        before = await world.read_broker()
        await anyio.sleep(0.01)
        await world.storage.renew([world.session])
        after = await world.read_broker()
        assert (after.renewed_at or 0) > (before.renewed_at or 0)
        assert after.connection_epoch == before.connection_epoch

    async def test_a_beat_of_a_removed_node_is_told_so(self, world: World) -> None:
        assert await world.storage.beat(world.node, draining=True)
        assert [node.draining for node in await world.storage.list_nodes() if node.id == world.node] == [True]
        await world.storage.remove_node(world.node)
        assert not await world.storage.beat(world.node, draining=False)
        assert not (await world.read_broker()).online

    async def test_a_beat_tells_a_node_that_it_is_to_drain_and_nothing_takes_it_back(self, world: World) -> None:
        asked = await world.storage.drain_node(world.node)
        assert (asked and asked.id, asked and asked.draining) == (world.node, True)
        for _ in range(2):
            told = await world.storage.beat(world.node, draining=False)
            assert told
            assert told.draining

    async def test_a_node_that_is_gone_lost_or_no_node_cannot_be_asked_to_drain(self, world: World) -> None:
        assert await world.storage.drain_node(NodeId(uuid())) is None
        assert await world.storage.drain_node(NodeId("no id")) is None
        await self._lost(world)
        assert await world.storage.drain_node(world.node) is None

    async def _lost(self, world: World) -> Reaped:
        """The world's node was silent for longer than it may, and another judges it."""
        await anyio.sleep(2 * SILENCE)
        return await world.storage.reap(await world.another_node(), lost_after=SILENCE, stale_after=3600.0)

    async def test_who_is_silent_itself_judges_nobody(self, world: World) -> None:
        """Its call may have waited for an outage to end, and by then it knows nothing of the others."""
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await anyio.sleep(0.02)
        reaped = await world.storage.reap(world.node, lost_after=0.01, stale_after=0.01)
        assert (reaped.lost_nodes, reaped.cleared, reaped.changed.intents) == ((), (), ())
        assert await world.storage.beat(world.node, draining=False)
        assert (await world.read(intent.id)).state is State.IN_PROGRESS

    async def test_a_lost_node_cannot_beat_but_may_join_again(self, world: World) -> None:
        reaped = await self._lost(world)
        assert reaped.lost_nodes == (world.node,)
        assert not await world.storage.beat(world.node, draining=False)
        node = (await world.storage.list_nodes())[0]
        await world.storage.join_node(
            Node(id=world.node, started_at=node.started_at, beat_at=node.beat_at, version="1")
        )
        assert await world.storage.beat(world.node, draining=False)

    async def test_a_session_of_a_lost_node_does_not_make_online(self, world: World) -> None:
        await self._lost(world)
        await world.connect()
        assert not (await world.read_broker()).online

    async def test_reaping_clears_what_a_lost_node_held_and_drives_it_again(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        reaped = await self._lost(world)
        assert reaped.cleared == (world.broker.id,)
        assert ids(reaped.changed.intents) == [intent.id]
        assert (await world.read(intent.id)).state is State.PENDING
        assert (await world.read_broker()).connected_hub_id is None

    async def test_reaping_clears_what_was_not_renewed(self, world: World) -> None:
        await anyio.sleep(0.02)
        reaped = await world.storage.reap(world.node, lost_after=3600.0, stale_after=0.01)
        assert (reaped.lost_nodes, reaped.cleared) == ((), (world.broker.id,))

    async def test_reaping_leaves_the_living_alone(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        reaped = await world.storage.reap(world.node, lost_after=3600.0, stale_after=3600.0)
        assert (reaped.lost_nodes, reaped.cleared, reaped.changed.intents) == ((), (), ())
        assert (await world.read(intent.id)).state is State.IN_PROGRESS

    async def test_after_reaping_the_old_session_can_neither_claim_nor_end(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await anyio.sleep(0.02)
        await world.storage.reap(world.node, lost_after=3600.0, stale_after=0.01)
        assert (await world.claim()).stale
        assert not (await world.end(intent)).accepted
        assert await world.storage.renew([world.session]) == (world.session.session_id,)


class PoisonContract(StorageContract):
    """What was in flight each time that a process of the broker died."""

    async def _crash(self, world: World, intent: Intent, code: int = 1006, *, sent: bool = True) -> SessionClaimed:
        await world.disconnect(code, [intent.id] if sent else [])
        return await world.connect(instance=uuid())

    async def _in_flight(self, world: World, op: Op = Op.START) -> Intent:
        await world.connect(instance=uuid())
        return await world.claimed(op, await world.new_agent())

    async def test_the_third_crash_is_the_last(self, world: World) -> None:
        intent = await self._in_flight(world)
        for crashes in (1, 2):
            assert (await self._crash(world, intent)).redriven.intents == ()
            [intent] = (await world.claim()).intents
            assert intent.broker_crashes == crashes
        claimed = await self._crash(world, intent)
        [poison] = claimed.redriven.intents
        assert (poison.state, poison.error and poison.error.code) == (State.FAILED, "poison")
        assert claimed.redriven.transitions[0].reason == "poison"
        assert (await world.claim()).intents == ()

    async def test_a_poisonous_start_leaves_its_agent_in_error(self, world: World) -> None:
        intent = await self._in_flight(world)
        for _ in range(3):
            await self._crash(world, intent)
            await world.claim()
        agent = await world.read_agent(intent.agent_id)
        assert agent.phase is Phase.ERROR
        assert agent.message

    async def test_crashes_are_counted_when_the_new_process_comes_before_the_release(self, world: World) -> None:
        intent = await self._in_flight(world)
        step = Progress(
            intent_id=intent.id, op=intent.op, epoch=world.session.epoch, attempt=intent.attempts, sent=True
        )
        await world.storage.progress([step])
        claimed = await world.connect(instance=uuid())
        assert [one.broker_crashes for one in claimed.redriven.intents] == [1]

    async def test_an_orderly_close_is_no_crash(self, world: World) -> None:
        intent = await self._in_flight(world)
        await self._crash(world, intent, code=1000)
        assert (await world.read(intent.id)).broker_crashes == 0

    async def test_the_same_process_on_a_new_socket_is_no_crash(self, world: World) -> None:
        instance = uuid()
        await world.connect(instance=instance)
        intent = await world.claimed(Op.START, await world.new_agent())
        await world.disconnect(1006, [intent.id])
        await world.connect(instance=instance)
        assert (await world.read(intent.id)).broker_crashes == 0

    async def test_what_was_not_sent_is_not_counted(self, world: World) -> None:
        intent = await self._in_flight(world)
        await self._crash(world, intent, sent=False)
        assert (await world.read(intent.id)).broker_crashes == 0

    async def test_what_was_answered_is_not_counted(self, world: World) -> None:
        intent = await self._in_flight(world)
        step = Progress(
            intent_id=intent.id, op=intent.op, epoch=world.session.epoch, attempt=intent.attempts, sent=True
        )
        await world.storage.progress([step])
        await world.put_back(intent, reason="broker_503")
        await self._crash(world, intent, sent=False)
        assert (await world.read(intent.id)).broker_crashes == 0

    async def test_a_message_is_poison_too(self, world: World) -> None:
        intent = await self._in_flight(world, Op.MESSAGE)
        for _ in range(3):
            await self._crash(world, intent)
            await world.claim()
        assert (await world.read(intent.id)).state is State.FAILED

    async def test_work_recorded_after_the_release_is_counted_by_when_it_was_sent(self, world: World) -> None:
        await world.connect(instance=uuid())
        agent = await world.new_agent()
        old = world.session
        await world.disconnect(1006)
        sent = (await world.read_broker()).disconnected_at
        intent = await world.record(Op.STOP, agent, attempts=1, claim=old, sent_at=sent)
        await world.connect(instance=uuid())
        assert (await world.read(intent.id)).broker_crashes == 1

    @pytest.mark.parametrize("instances", [(None, "two"), ("one", None), (None, None)])
    async def test_of_a_process_that_names_no_instance_no_crash_is_known(
        self, world: World, instances: tuple[str | None, str | None]
    ) -> None:
        await world.connect(instance=instances[0])
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.disconnect(1006, [intent.id])
        await world.connect(instance=instances[1])
        assert (await world.read(intent.id)).broker_crashes == 0

    async def test_one_crash_is_counted_once(self, world: World) -> None:
        intent = await self._in_flight(world)
        await self._crash(world, intent)
        await world.disconnect(1006)
        await world.connect(instance=uuid())
        assert (await world.read(intent.id)).broker_crashes == 1

    async def test_what_an_earlier_socket_lost_is_not_counted_for_a_later_crash(self, world: World) -> None:
        instance = uuid()
        await world.connect(instance=instance)
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.disconnect(1006, [intent.id])
        await world.connect(instance=instance)
        await world.disconnect(1006)
        await world.connect(instance=uuid())
        assert (await world.read(intent.id)).broker_crashes == 0, "the process that died did not have it in hand"

    async def test_a_poisonous_stop_leaves_its_agent_alone(self, world: World) -> None:
        intent = await self._in_flight(world, Op.STOP)
        for _ in range(3):
            await self._crash(world, intent)
            await world.claim()
        assert (await world.read_agent(intent.agent_id)).phase is Phase.RUNNING
