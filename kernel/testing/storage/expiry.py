"""What ends without an answer: cancelled, expired, driven again; and what may be told of it."""

from __future__ import annotations

import anyio
import pytest

from kernel.agent import AgentChange, Phase
from kernel.errors import NotFound
from kernel.intent import Intent, IntentId, Op, State
from kernel.storage import Changed
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import FAILURE, World, ids, uuid

SOON = 1.5
"""Seconds: enough for a claim before them on a busy machine."""


async def _tried(world: World, op: Op = Op.STOP, **more: float) -> Intent:
    """Pending, after one attempt of which nobody knows the outcome."""
    intent = await world.claimed(op, await world.new_agent(), **more)
    await world.put_back(intent, reason="link_lost")
    return await world.read(intent.id)


class CancelContract(StorageContract):
    @pytest.mark.parametrize("op", [Op.STOP, Op.MESSAGE])
    async def test_what_nobody_took_is_cancelled_and_did_not_happen(self, world: World, op: Op) -> None:
        intent = await world.record(op, await world.new_agent(), sealed=b"secret")
        cancelled = await world.storage.cancel(intent.id, world.node)
        ended = await world.read(intent.id)
        assert (cancelled.outcome, cancelled.intent) == ("cancelled", ended)
        assert (ended.state, ended.error and ended.error.code, ended.sealed) == (State.CANCELLED, "cancelled", None)
        assert [step.to_state for step in cancelled.transitions] == [State.CANCELLED]
        assert (await world.claim()).intents == ()

    async def test_who_cancelled_stands_in_the_history(self, world: World) -> None:
        intent = await world.record(Op.STOP, await world.new_agent())
        await world.storage.cancel(intent.id, world.node, "user:somebody")
        view = await world.storage.explain(intent.id)
        assert view is not None
        assert view.history[-1].detail == {"by": "user:somebody"}

    async def test_what_waits_for_an_agent_goes_with_its_cancelled_creation(self, world: World) -> None:
        agent, creation = await world.creation()
        held = await world.record(Op.MESSAGE, agent)
        cancelled = await world.storage.cancel(creation.id, world.node)
        assert [step.intent_id for step in cancelled.transitions] == [creation.id, held.id]
        assert (await world.read(held.id)).state is State.CANCELLED

    async def test_what_was_tried_is_cancelled_with_an_unknown_outcome(self, world: World) -> None:
        intent = await _tried(world)
        cancelled = (await world.storage.cancel(intent.id, world.node)).intent
        assert (cancelled.state, cancelled.error and cancelled.error.code) == (State.CANCELLED, "outcome_unknown")

    async def test_what_is_in_hand_is_left_to_its_owner(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        cancelled = await world.storage.cancel(intent.id, world.node)
        assert (cancelled.outcome, cancelled.transitions) == ("cancel_requested", ())
        assert await world.read(intent.id) == intent

    async def test_what_ended_stays_ended(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.end(intent)
        cancelled = await world.storage.cancel(intent.id, world.node)
        assert (cancelled.outcome, cancelled.intent.state) == ("already_ended", State.DONE)

    @pytest.mark.parametrize("unknown", ["", "nonsense", "00000000-0000-7000-8000-000000000000", "\udcff"])
    async def test_what_is_unknown_is_not_found(self, world: World, unknown: str) -> None:
        with pytest.raises(NotFound):
            await world.storage.cancel(IntentId(unknown), world.node)

    async def test_of_a_claim_and_a_cancel_that_race_one_wins(self, world: World) -> None:
        for _ in range(10):
            intent = await world.record(Op.STOP, await world.new_agent())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(world.claim)
                tasks.start_soon(world.storage.cancel, intent.id, world.node)
            ended = await world.read(intent.id)
            assert (ended.state, ended.attempts) in ((State.IN_PROGRESS, 1), (State.CANCELLED, 0))

    async def test_a_cancelled_creation_takes_its_agent_with_it(self, world: World) -> None:
        agent, intent = await world.creation()
        await world.storage.cancel(intent.id, world.node)
        assert await world.storage.find_agent(agent.id) is None
        assert (await world.read(intent.id)).state is State.CANCELLED

    async def test_of_a_creation_that_was_tried_the_agent_stays_in_error(self, world: World) -> None:
        agent, intent = await world.creation()
        await world.claim()
        await world.put_back(await world.read(intent.id), reason="link_lost")
        await world.storage.cancel(intent.id, world.node)
        after = await world.read_agent(agent.id)
        assert after.phase is Phase.ERROR
        assert after.message

    async def test_a_cancelled_start_leaves_its_agent_alone(self, world: World) -> None:
        agent = await world.new_agent(Phase.STOPPED)
        intent = await world.record(Op.START, agent)
        await world.storage.cancel(intent.id, world.node)
        assert await world.read_agent(agent.id) == agent


class ExpiryContract(StorageContract):
    async def test_what_nobody_took_expires_with_the_given_failure(self, world: World) -> None:
        intent = await world.record(Op.STOP, await world.new_agent(), sealed=b"secret")
        changed = await world.storage.expire([intent.id], FAILURE, world.node)
        ended = await world.read(intent.id)
        assert changed.intents == (ended,)
        assert (ended.state, ended.error, ended.sealed) == (State.EXPIRED, FAILURE, None)

    async def test_what_was_tried_expires_with_an_unknown_outcome(self, world: World) -> None:
        intent = await _tried(world)
        [ended] = (await world.storage.expire([intent.id], FAILURE, world.node)).intents
        assert (ended.state, ended.error and ended.error.code) == (State.EXPIRED, "outcome_unknown")

    async def test_what_is_in_hand_or_ended_does_not_expire(self, world: World) -> None:
        held = await world.claimed(Op.STOP, await world.new_agent())
        ended = await world.claimed(Op.STOP, await world.new_agent())
        await world.end(ended)
        expired = await world.storage.expire([held.id, ended.id, IntentId("nonsense")], FAILURE, world.node)
        assert expired == Changed()
        assert (await world.read(held.id)).state is State.IN_PROGRESS

    @pytest.mark.parametrize("op", [Op.STOP, Op.MESSAGE])
    async def test_a_passed_deadline_expires(self, world: World, op: Op) -> None:
        late = await world.record(op, await world.new_agent(), deadline_in=0.02)
        kept = await world.record(op, await world.new_agent(), deadline_in=600.0)
        await anyio.sleep(0.05)
        [ended] = (await world.storage.expire_due(world.node, 100)).intents
        assert (ended.id, ended.state, ended.error and ended.error.code) == (late.id, State.EXPIRED, "broker_timeout")
        assert (await world.read(kept.id)).state is State.PENDING

    async def test_a_deadline_that_passes_after_an_attempt_is_an_unknown_outcome(self, world: World) -> None:
        intent = await _tried(world, deadline_in=SOON)
        await anyio.sleep(SOON + 0.05)
        [ended] = (await world.storage.expire_due(world.node, 100)).intents
        assert (ended.id, ended.error and ended.error.code) == (intent.id, "outcome_unknown")

    async def test_what_is_in_hand_is_never_taken_away_by_a_clock(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent(), deadline_in=SOON)
        await anyio.sleep(SOON + 0.05)
        assert await world.storage.expire_due(world.node, 100) == Changed()
        assert (await world.end(intent)).accepted

    async def test_what_is_in_hand_takes_no_place_in_a_sweep(self, world: World) -> None:
        await world.claimed(Op.STOP, await world.new_agent(), deadline_in=SOON)
        late = await world.record(Op.STOP, await world.new_agent(), deadline_in=SOON)
        await anyio.sleep(SOON + 0.05)
        assert ids((await world.storage.expire_due(world.node, 1)).intents) == [late.id]

    async def test_a_sweep_moves_no_more_than_its_limit(self, world: World) -> None:
        late = [await world.record(Op.STOP, await world.new_agent(), deadline_in=0.02) for _ in range(3)]
        late += [await world.record(Op.MESSAGE, await world.new_agent(), deadline_in=0.02) for _ in range(3)]
        await anyio.sleep(0.05)
        moved: list[str] = []
        for expected in (4, 2, 0):
            changed = await world.storage.expire_due(world.node, 4)
            assert len(changed.intents) == expected
            moved += ids(changed.intents)
        assert sorted(moved) == sorted(ids(late))

    async def test_each_of_a_full_round_ends_as_it_would_alone(self, world: World) -> None:
        """Of either table, tried or not, with an agent that goes or stays: each keeps its history."""
        half, creation = await world.creation(deadline_in=SOON)
        others = [await world.record(op, await world.new_agent(), deadline_in=SOON) for op in (Op.STOP, Op.MESSAGE)]
        for claimed in (await world.claim()).intents:
            await world.put_back(claimed, reason="link_lost")
        untried = [await world.creation(deadline_in=0.02) for _ in range(30)]
        said = [await world.record(Op.MESSAGE, half, deadline_in=0.02) for _ in range(30)]
        waits = await world.record(Op.MESSAGE, untried[0][0])
        await anyio.sleep(SOON + 0.1)
        rounds = [await world.storage.expire_due(world.node, 40) for _ in range(2)]
        ended = {one.id: one for changed in rounds for one in changed.intents}
        assert [len(changed.intents) for changed in rounds] == [40, 23]
        unknown = {one.id for one in ended.values() if one.error and one.error.code == "outcome_unknown"}
        assert unknown == {creation.id, *ids(others)}
        late = {one.id for one in ended.values() if one.error and one.error.code == "broker_timeout"}
        assert late == {*ids(said), *ids(intent for _, intent in untried)}
        assert (await world.read_agent(half.id)).phase is Phase.ERROR
        assert await world.storage.find_agents([agent.id for agent, _ in untried]) == {}
        for told in (step for changed in rounds for step in changed.transitions):
            view = await world.storage.explain(told.intent_id)
            assert view is not None
            assert (view.intent, view.history[-1]) == (ended[told.intent_id], told)
            assert (told.reason, told.attempt, told.epoch) == ("deadline", view.intent.attempts, None)
        assert ids((await world.storage.redrive(world.node, 100)).intents) == [waits.id]

    async def test_an_expired_creation_takes_its_agent_with_it(self, world: World) -> None:
        agent, intent = await world.creation(deadline_in=0.02)
        await anyio.sleep(0.05)
        await world.storage.expire_due(world.node, 100)
        assert await world.storage.find_agent(agent.id) is None
        assert (await world.read(intent.id)).state is State.EXPIRED

    async def test_of_an_expired_creation_that_was_tried_the_agent_stays_in_error(self, world: World) -> None:
        agent, intent = await world.creation()
        await world.claim()
        await world.put_back(await world.read(intent.id), reason="link_lost")
        await world.storage.expire([intent.id], FAILURE, world.node)
        after = await world.read_agent(agent.id)
        assert after.phase is Phase.ERROR
        assert after.message

    # -- nobody holds the broker ---------------------------------------------------------------------------------

    async def test_what_waits_for_a_broker_that_is_gone_expires(self, world: World) -> None:
        await world.disconnect()
        intent = await world.record(Op.STOP, await world.new_agent())
        assert await world.storage.expire_unheld(world.node, 3600.0, 100) == Changed(), "within its grace it waits"
        await anyio.sleep(0.02)
        [ended] = (await world.storage.expire_unheld(world.node, 0.01, 100)).intents
        told = (ended.id, ended.state, ended.error and ended.error.code)
        assert told == (intent.id, State.EXPIRED, "runtime_broker_unavailable")

    async def test_what_a_held_broker_will_take_does_not_expire(self, world: World) -> None:
        await world.record(Op.STOP, await world.new_agent())
        assert await world.storage.expire_unheld(world.node, 0.0, 100) == Changed()

    async def test_what_may_wait_or_was_tried_or_is_a_message_does_not_expire(self, world: World) -> None:
        tried = await _tried(world)
        await world.disconnect()
        held = await world.record(Op.STOP, await world.new_agent(), hold=True)
        said = await world.record(Op.MESSAGE, await world.new_agent())
        await anyio.sleep(0.02)
        assert await world.storage.expire_unheld(world.node, 0.01, 100) == Changed()
        assert {(await world.read(one.id)).state for one in (tried, held, said)} == {State.PENDING}

    async def test_what_waits_for_a_broker_that_never_came_expires(self, world: World) -> None:
        world.broker = await world.new_broker()
        intent = await world.record(Op.STOP, await world.new_agent())
        assert ids((await world.storage.expire_unheld(world.node, 0.01, 100)).intents) == [intent.id]

    # -- driven again ------------------------------------------------------------------------------------------------

    async def test_what_a_dead_epoch_left_is_driven_again(self, world: World) -> None:
        """It can only be left by a path that missed it: the claim of a session takes the rest with it."""
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.storage.delete_broker((await self._moved(world, intent)).broker_id)  # type: ignore[arg-type]
        changed = await world.storage.redrive(world.node, 100)
        assert ids(changed.intents) == [intent.id]
        assert changed.transitions[0].reason == "owner_lost"
        assert (await world.read(intent.id)).state is State.PENDING

    async def test_what_a_live_session_holds_is_left_to_it(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        assert await world.storage.redrive(world.node, 100) == Changed()
        assert (await world.read(intent.id)).state is State.IN_PROGRESS

    async def test_messages_to_an_agent_that_is_gone_are_not_held(self, world: World) -> None:
        """They were on their way while it was deleted, or never came to be."""
        deleted, (removed, creation) = await world.new_agent(), await world.creation()
        await world.claim()
        await world.end(await world.read(creation.id), state=State.FAILED, change=AgentChange(removal="row"))
        await world.end(await world.claimed(Op.DELETE, deleted), change=AgentChange(removal="soft"))
        gone = [await world.record(Op.MESSAGE, agent) for agent in (deleted, removed)]
        held = await world.record(Op.MESSAGE, await world.new_agent(Phase.SUSPENDED))
        changed = await world.storage.redrive(world.node, 100)
        assert {(one.id, one.state) for one in changed.intents} == {(one.id, State.CANCELLED) for one in gone}
        assert {told.reason for told in changed.transitions} == {"agent_deleted"}
        assert (await world.read(held.id)).state is State.PENDING
        assert await world.storage.redrive(world.node, 100) == Changed()

    async def _moved(self, world: World, intent: Intent) -> Intent:
        """Its agent is gone, so that its broker may be deleted under it."""
        other = await world.claimed(Op.MESSAGE, await world.read_agent(intent.agent_id))
        await world.end(other, change=AgentChange(removal="soft"))
        return intent

    async def test_nothing_is_claimed_driven_or_expired_out_of_history(self, world: World) -> None:
        agent = await world.new_agent()
        for op in (Op.STOP, Op.MESSAGE):
            for state in (State.DONE, State.FAILED, State.EXPIRED, State.CANCELLED):
                await world.end(await world.claimed(op, agent, deadline_in=SOON), state=state)
        await world.storage.add_message(world.message(uuid(), agent, recipient="user:one", recipient_id="one"))
        await anyio.sleep(SOON + 0.05)
        await world.connect()
        assert (await world.claim()).intents == ()
        assert await world.storage.redrive(world.node, 100) == Changed()
        assert await world.storage.expire_due(world.node, 100) == Changed()
        assert await world.storage.poll(world.node) == []
        assert (await world.storage.unfinished()).counts == {}
