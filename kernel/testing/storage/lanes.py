"""What a claim takes: heads of lanes, in order, only for the session that the broker's row carries."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from kernel.agent import AgentChange, Phase
from kernel.broker import Session
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.node import NodeId
from kernel.storage import BrokerEdit, Recording
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import World, ids, uuid


class LaneContract(StorageContract):
    async def test_a_lane_gives_one_at_a_time_in_the_order_recorded(self, world: World) -> None:
        agent = await world.new_agent()
        recorded = [await world.record(op, agent) for op in (Op.STOP, Op.START, Op.RESTART)]
        taken = []
        for _ in recorded:
            [intent] = (await world.claim()).intents
            assert (await world.claim()).intents == (), "the next waits for the end of the one before"
            await world.end(intent)
            taken.append(intent)
        assert ids(taken) == ids(recorded)
        assert [one.seq for one in taken] == sorted(one.seq for one in taken)

    async def test_one_that_is_set_aside_lets_the_lane_move_on(self, world: World) -> None:
        agent = await world.new_agent()
        first, second = await world.record(Op.STOP, agent), await world.record(Op.START, agent)
        await world.claim()
        await world.end(await world.read(first.id), state=State.FAILED)
        assert ids((await world.claim()).intents) == [second.id]

    async def test_what_is_put_back_stays_before_the_rest_of_its_lane(self, world: World) -> None:
        agent = await world.new_agent()
        first = await world.claimed(Op.STOP, agent)
        await world.record(Op.START, agent)
        await world.put_back(first, retry_in=600.0)
        assert (await world.claim()).intents == ()

    async def test_control_and_messages_do_not_wait_for_each_other(self, world: World) -> None:
        agent = await world.new_agent()
        said, stop = await world.record(Op.MESSAGE, agent), await world.record(Op.STOP, agent)
        assert ids((await world.claim()).intents) == [stop.id, said.id]

    async def test_control_goes_before_messages_when_there_is_room_for_one(self, world: World) -> None:
        agent = await world.new_agent()
        await world.record(Op.MESSAGE, agent)
        stop = await world.record(Op.STOP, agent)
        assert ids((await world.claim(limit=1)).intents) == [stop.id]

    async def test_one_agent_never_delays_another(self, world: World) -> None:
        agents = [await world.new_agent() for _ in range(5)]
        for agent in agents:
            await world.record(Op.STOP, agent)
            await world.record(Op.START, agent)
        claims = await world.claim()
        assert sorted(one.agent_id for one in claims.intents) == sorted(agent.id for agent in agents)
        assert {one.op for one in claims.intents} == {Op.STOP}

    async def test_the_limit_is_kept_and_the_eldest_go_first(self, world: World) -> None:
        agents = [await world.new_agent() for _ in range(5)]
        recorded = [await world.record(Op.STOP, agent) for agent in agents[::-1]]
        assert ids((await world.claim(limit=2)).intents) == ids(recorded[:2])
        assert ids((await world.claim(limit=2)).intents) == ids(recorded[2:4])

    async def test_a_hint_names_the_lanes_that_are_looked_at(self, world: World) -> None:
        recorded = [await world.record(Op.STOP, await world.new_agent()) for _ in range(4)]
        hinted = await world.claim(ids=(recorded[2].id, IntentId("nonsense"), IntentId(uuid())))
        assert ids(hinted.intents) == [recorded[2].id]
        assert (await world.claim(ids=())).intents == ()
        assert len((await world.claim()).intents) == 3

    async def test_a_hint_takes_the_head_of_its_lane_whichever_that_is(self, world: World) -> None:
        agent = await world.new_agent()
        head = await world.record(Op.STOP, agent)
        hinted = await world.record(Op.START, agent)
        assert ids((await world.claim(ids=(hinted.id,))).intents) == [head.id]
        assert (await world.claim(ids=(hinted.id,))).intents == ()

    async def test_hints_of_both_lanes_are_taken_control_first(self, world: World) -> None:
        for _ in range(2):  # whichever lane was hinted at before
            said, stop = [await world.record(op, await world.new_agent()) for op in (Op.MESSAGE, Op.STOP)]
            assert ids((await world.claim(ids=(said.id, stop.id))).intents) == [stop.id, said.id]
            alone = await world.record(Op.MESSAGE, await world.new_agent())
            assert ids((await world.claim(ids=(alone.id,))).intents) == [alone.id]
        said, stop = [await world.record(op, await world.new_agent()) for op in (Op.MESSAGE, Op.STOP)]
        assert ids((await world.claim(ids=(said.id, stop.id), limit=1)).intents) == [stop.id]
        assert ids((await world.claim(ids=(said.id, stop.id), limit=1)).intents) == [said.id]

    async def test_only_known_operations_are_taken(self, world: World) -> None:
        agent = await world.new_agent()
        await world.record(Op.SUSPEND, agent)
        said = await world.record(Op.MESSAGE, agent)
        assert (await world.claim(ops=frozenset({Op.STOP}))).intents == ()
        assert ids((await world.claim(ops=frozenset({Op.MESSAGE}))).intents) == [said.id]

    async def test_a_claim_stamps_who_took_it_and_counts_the_attempt(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        session = world.session
        claimed = (intent.claimed_by, intent.claimed_session, intent.claimed_epoch)
        assert claimed == (session.node_id, session.session_id, session.epoch)
        assert (intent.state, intent.attempts, intent.sent_at) == (State.IN_PROGRESS, 1, None)
        assert intent.claimed_at is not None
        assert await world.read(intent.id) == intent

    async def test_a_claim_tells_the_databases_clock(self, world: World) -> None:
        await world.record(Op.STOP, await world.new_agent(), deadline_in=100.0)
        claims = await world.claim()
        assert claims.now == claims.intents[0].claimed_at
        assert 90.0 < claims.intents[0].remaining(claims.now) <= 100.0

    # -- not now ---------------------------------------------------------------------------------------------------

    async def test_what_is_not_due_yet_is_not_taken(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent, retry_in=1.5)
        assert (await world.claim()).intents == ()
        await anyio.sleep(1.55)
        assert ids((await world.claim()).intents) == [intent.id]

    async def test_what_is_past_its_deadline_is_not_taken(self, world: World) -> None:
        await world.record(Op.STOP, await world.new_agent(), deadline_in=0.02)
        await anyio.sleep(0.05)
        assert (await world.claim()).intents == ()

    async def test_a_paused_broker_gives_nothing_and_is_not_stale(self, world: World) -> None:
        intent = await world.record(Op.STOP, await world.new_agent())
        await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, paused=True))
        claims = await world.claim()
        assert (claims.intents, claims.stale) == ((), False)
        assert await world.storage.poll(world.node) == []
        await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, paused=False))
        assert ids((await world.claim()).intents) == [intent.id]

    @pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.RUNNING])
    async def test_messages_wait_until_their_agent_runs(self, world: World, phase: Phase) -> None:
        agent = await world.new_agent(phase)
        said = await world.record(Op.MESSAGE, agent)
        assert (await world.claim()).intents == ()
        await world.runs(agent)
        assert ids((await world.claim()).intents) == [said.id]

    async def test_messages_to_a_deleted_agent_are_not_taken(self, world: World) -> None:
        agent = await world.new_agent()
        await world.record(Op.MESSAGE, agent)
        delete = await world.record(Op.DELETE, agent)
        await world.claim(limit=1)
        await world.end(await world.read(delete.id), change=AgentChange(removal="soft"))
        assert (await world.claim()).intents == ()

    async def test_nothing_joins_a_lane_that_is_in_hand(self, world: World) -> None:
        """A LOCAL call that got its row late stands behind what was recorded while it was in flight."""
        agent = await world.new_agent()
        waits = await world.record(Op.START, agent)
        local = await world.record(Op.STOP, agent, attempts=1, claim=world.session)
        assert local.state is State.IN_PROGRESS
        assert (await world.claim()).intents == ()
        await world.end(local)
        assert ids((await world.claim()).intents) == [waits.id]

    # -- whose they are --------------------------------------------------------------------------------------------

    async def test_a_stale_session_takes_nothing(self, world: World) -> None:
        old = world.session
        await world.connect()
        intent = await world.record(Op.STOP, await world.new_agent())
        claims = await world.claim(session=old)
        assert (claims.stale, claims.intents) == (True, ())
        assert (await world.read(intent.id)).attempts == 0

    @pytest.mark.parametrize("other", ["node_id", "session_id", "epoch", "broker_id"])
    async def test_a_claim_compares_all_of_the_session(self, world: World, other: str) -> None:
        await world.record(Op.STOP, await world.new_agent())
        value: Any = 99 if other == "epoch" else uuid()
        fields = {name: getattr(world.session, name) for name in Session.__struct_fields__}
        claims = await world.claim(session=Session(**{**fields, other: value}))
        assert (claims.stale, claims.intents) == (True, ())

    async def test_a_released_session_takes_nothing(self, world: World) -> None:
        await world.record(Op.STOP, await world.new_agent())
        await world.disconnect()
        assert (await world.claim()).stale

    async def test_a_deleted_broker_gives_nothing(self, world: World) -> None:
        agent = world.agent()
        await world.record(Op.DELETE, agent)
        await world.storage.delete_broker(world.broker.id)
        assert (await world.claim()).stale

    async def test_a_claim_takes_nothing_of_another_broker(self, world: World) -> None:
        await world.record(Op.STOP, await world.new_agent())
        world.broker = await world.new_broker()
        await world.connect()
        assert (await world.claim()).intents == ()

    async def test_claims_that_race_take_each_intent_once(self, world: World) -> None:
        recorded = [await world.record(Op.MESSAGE, await world.new_agent()) for _ in range(40)]
        taken: list[Intent] = []

        async def claim() -> None:
            while found := (await world.claim(limit=3)).intents:
                taken.extend(found)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(claim)
        assert sorted(ids(taken)) == sorted(ids(recorded))
        assert {one.attempts for one in taken} == {1}

    async def test_claims_and_a_newer_session_that_race_leave_nothing_behind(self, world: World) -> None:
        recorded = [await world.record(Op.STOP, await world.new_agent()) for _ in range(20)]
        old = world.session

        async def claim() -> None:
            while not (claims := await world.claim(limit=1, session=old)).stale and claims.intents:
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(claim)
            tasks.start_soon(claim)
            tasks.start_soon(world.connect)
        assert sorted(ids((await world.claim()).intents)) == sorted(ids(recorded))

    async def test_a_long_lane_is_walked_to_its_end(self, world: World) -> None:
        agent = await world.new_agent()
        new = tuple(world.intent(Op.MESSAGE, agent) for _ in range(120))
        await world.storage.record(Recording(intents=new))
        taken = []
        while found := (await world.claim()).intents:
            taken += ids(found)
            await world.end(found[0])
        assert taken == [one.id for one in new]

    # -- poll ------------------------------------------------------------------------------------------------------

    async def test_the_poll_names_brokers_of_this_node_with_something_pending(self, world: World) -> None:
        assert await world.storage.poll(world.node) == []
        await world.record(Op.STOP, await world.new_agent())
        said = await world.new_agent()
        await world.record(Op.MESSAGE, said)
        assert await world.storage.poll(world.node) == [world.broker.id]
        assert await world.storage.poll(NodeId(uuid())) == []
        await world.claim()
        assert await world.storage.poll(world.node) == []

    async def test_the_poll_does_not_name_what_is_not_due(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent, retry_in=600.0)
        assert await world.storage.poll(world.node) == []

    async def test_an_endpoint_waits_while_nobody_holds_its_broker_and_something_is_due(self, world: World) -> None:
        async def waiting() -> bool:
            return world.broker.id in [broker.id for broker in await world.storage.endpoints_waiting(1_000)]

        agent = await world.new_agent()
        intent = await world.claimed(Op.STOP, agent)
        await world.disconnect()
        assert not await waiting()
        edit = BrokerEdit(broker_id=world.broker.id, endpoint="https://one.example")
        await world.storage.edit_broker(edit)
        assert await waiting()
        await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, paused=True))
        assert not await waiting()
        await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, paused=False))
        await world.connect(kind="direct")
        assert not await waiting()
        again = await world.claim()
        assert [one.id for one in again.intents] == [intent.id]
        await world.put_back(again.intents[0], retry_in=3600.0)
        await world.disconnect()
        assert not await waiting()

    @pytest.mark.parametrize(("phase", "waits"), [(Phase.RUNNING, True), (Phase.STOPPED, False)])
    async def test_an_endpoint_is_called_with_messages_while_their_agent_runs(
        self, world: World, phase: Phase, waits: bool
    ) -> None:
        await world.record(Op.MESSAGE, await world.new_agent(phase))
        await world.disconnect()
        await world.storage.edit_broker(BrokerEdit(broker_id=world.broker.id, endpoint="https://one.example"))
        found = [broker.id for broker in await world.storage.endpoints_waiting(1_000)]
        assert (world.broker.id in found) == waits

    async def test_the_poll_finds_one_broker_among_many(self, world: World) -> None:
        wanted = []
        for number in range(6):
            world.broker = await world.new_broker()
            await world.connect()
            if number % 2:
                await world.record(Op.STOP, await world.new_agent())
                wanted.append(world.broker.id)
        assert sorted(await world.storage.poll(world.node)) == sorted(wanted)

    # -- what waits, seen from an agent ------------------------------------------------------------------------------

    async def test_an_agents_view_tells_which_lanes_wait(self, world: World) -> None:
        agent = await world.new_agent()
        assert (await world.view(agent.id)).waiting == frozenset()
        stop = await world.record(Op.STOP, agent)
        assert (await world.view(agent.id)).waiting == {Lane.CONTROL}
        said = await world.record(Op.MESSAGE, agent)
        assert (await world.view(agent.id)).waiting == {Lane.CONTROL, Lane.MESSAGE}
        await world.claim()
        assert (await world.view(agent.id)).waiting == {Lane.CONTROL, Lane.MESSAGE}, "in hand is unfinished"
        for intent in (stop, said):
            await world.end(await world.read(intent.id))
        assert (await world.view(agent.id)).waiting == frozenset()

    async def test_an_end_tells_whether_something_of_the_agent_may_go_now(self, world: World) -> None:
        agent = await world.new_agent()
        first = await world.claimed(Op.STOP, agent)
        await world.record(Op.START, agent)
        assert (await world.end(first)).waiting
        [last] = (await world.claim()).intents
        assert not (await world.end(last)).waiting

    async def test_what_is_in_hand_does_not_wait(self, world: World) -> None:
        agent = await world.new_agent()
        stop = await world.record(Op.STOP, agent)
        await world.record(Op.MESSAGE, agent)
        await world.claim()
        assert not (await world.end(await world.read(stop.id))).waiting

    async def test_the_end_that_stores_running_wakes_the_messages(self, world: World) -> None:
        agent = await world.new_agent(Phase.STARTING)
        await world.record(Op.MESSAGE, agent)
        start = await world.claimed(Op.START, agent)
        assert (await world.end(start, change=AgentChange(phase=Phase.RUNNING))).waiting
        stop = await world.new_agent(Phase.STOPPED)
        await world.record(Op.MESSAGE, stop)
        assert not (await world.end(await world.claimed(Op.STOP, stop))).waiting
