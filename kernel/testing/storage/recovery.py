"""Where commits were undone, the rows of a session are made to agree with what its node knows."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from kernel.agent import AgentChange, Phase
from kernel.broker import BrokerId
from kernel.intent import Intent, IntentId, Op, State
from kernel.node import NodeId
from kernel.storage import Held, Known, Recovered
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import World, ids, uuid

BOTH = pytest.mark.parametrize("op", [Op.STOP, Op.MESSAGE])
UNCLAIMED = (
    "UPDATE broker_dispatch SET state = 'pending', ended_at = NULL, attempts = :attempts, claimed_by = NULL, "
    "claimed_session = NULL, claimed_epoch = NULL WHERE id = :id"
)
UNENDED = "UPDATE broker_dispatch SET state = 'in_progress', result = NULL, ended_at = NULL WHERE id = :id"


async def _forget(world: World, intent: Intent, how: str, **values: int) -> None:
    """What a crash of the database leaves of a commit that it lost."""
    text = how
    if intent.op is Op.MESSAGE:
        text = how.replace("broker_dispatch SET state", "messages SET dispatch_state")
    for statement in (text, "DELETE FROM transitions WHERE intent_id = :id AND n > 2"):
        used = {name: value for name, value in {"id": intent.id, **values}.items() if f":{name}" in statement}
        await world.storage.sql.run(sa.text(statement), used)


async def unclaim(world: World, intent: Intent, attempts: int = 0) -> None:
    await _forget(world, intent, UNCLAIMED, attempts=attempts)


async def unend(world: World, intent: Intent) -> None:
    await _forget(world, intent, UNENDED)


def held(*intents: Intent) -> tuple[Held, ...]:
    return tuple(
        Held(intent_id=one.id, op=one.op, broker_id=BrokerId(one.broker_id), attempt=one.attempts) for one in intents
    )


async def recover(world: World, *in_hand: Intent, ended: tuple[Intent, ...] = ()) -> Recovered:
    known = Known(session=world.session, in_hand=held(*in_hand), ended=held(*ended))
    return await world.storage.recover(known)


class RecoveryContract(StorageContract):
    @BOTH
    async def test_an_undone_claim_is_taken_again_and_can_end(self, world: World, op: Op) -> None:
        intent = await world.claimed(op, await world.new_agent())
        await unclaim(world, intent)
        found = await recover(world, intent)
        assert (ids(found.taken), found.strangers, found.gone, found.unended) == ([intent.id], (), (), ())
        row = await world.read(intent.id)
        assert (row.state, row.attempts, row.claimed_by) == (State.IN_PROGRESS, intent.attempts, world.node)
        assert (row.claimed_session, row.claimed_epoch) == (world.session.session_id, world.session.epoch)
        assert [step.reason for step in found.transitions] == ["reclaimed"]
        assert (await world.claim()).intents == (), "it is in hand, and is not sent again"
        assert (await world.end(intent)).accepted

    async def test_the_last_of_several_attempts_is_taken_again_as_what_it_was(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent)
        [second] = (await world.claim()).intents
        for undone in (0, 1):
            await unclaim(world, second, attempts=undone)
            assert ids((await recover(world, second)).taken) == [second.id]
            assert (await world.read(second.id)).attempts == 2
        assert not (await world.end(intent)).accepted, "the first attempt is still fenced off"
        assert (await world.end(second)).accepted

    async def test_an_attempt_whose_put_back_was_undone_is_raised_to_what_is_in_hand(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        later = await _as_second_attempt(world, intent)
        found = await recover(world, later)
        assert (ids(found.taken), found.strangers, found.transitions) == ([intent.id], (), ())
        assert (await world.end(later)).accepted

    @BOTH
    async def test_an_undone_end_is_told_and_can_be_written_again(self, world: World, op: Op) -> None:
        agent = await world.new_agent()
        intent = await world.claimed(op, agent)
        await world.end(intent, change=AgentChange(phase=Phase.STOPPED))
        await unend(world, intent)
        found = await recover(world, ended=(intent,))
        assert (found.unended, found.strangers) == ((intent.id,), ())
        again = await world.end(intent, result={"said": "again"}, change=AgentChange(phase=Phase.STOPPED))
        assert (again.accepted, (await world.read(intent.id)).result) == (True, {"said": "again"})

    async def test_an_end_that_was_undone_with_its_claim_can_be_written_again(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.end(intent)
        await unclaim(world, intent)
        found = await recover(world, ended=(intent,))
        assert (ids(found.taken), found.unended) == ([intent.id], (intent.id,))
        assert (await world.end(intent)).accepted

    @BOTH
    async def test_a_claim_of_which_nobody_knows_is_a_stranger(self, world: World, op: Op) -> None:
        known, unheard = [await world.claimed(op, await world.new_agent()) for _ in range(2)]
        found = await recover(world, known)
        assert found.strangers == held(unheard)
        assert await world.read(unheard.id) == unheard, "whoever asked looks once more before it gives it back"
        back = await world.put_back(unheard, reason="unheard")
        assert [step.reason for step in back.transitions] == ["unheard"]
        assert ids((await world.claim()).intents) == [unheard.id]

    async def test_a_later_attempt_than_the_known_one_is_a_stranger(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent)
        [second] = (await world.claim()).intents
        found = await recover(world, intent)
        assert (found.taken, found.strangers) == ((), held(second))

    @BOTH
    async def test_what_agrees_is_left_alone(self, world: World, op: Op) -> None:
        in_hand, ended = [await world.claimed(op, await world.new_agent()) for _ in range(2)]
        await world.end(ended)
        rows = [await world.read(one.id) for one in (in_hand, ended)]
        assert await recover(world, in_hand, ended=(ended,)) == Recovered()
        assert [await world.read(one.id) for one in rows] == rows

    async def test_what_was_put_back_is_not_taken_again(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent)
        assert await recover(world, intent) == Recovered()
        assert (await world.read(intent.id)).state is State.PENDING

    async def test_what_was_ended_by_others_is_not_taken_again(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await unclaim(world, intent)
        await world.storage.cancel(intent.id, world.node)
        assert await recover(world, intent) == Recovered()
        assert (await world.read(intent.id)).state is State.CANCELLED

    async def test_what_has_no_row_any_more_is_told(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.storage.sql.run(sa.text("DELETE FROM broker_dispatch WHERE id = :id"), {"id": intent.id})
        assert (await recover(world, intent)).gone == (intent.id,)
        assert (await recover(world, ended=(intent,))).gone == (intent.id,)

    async def test_a_session_that_lost_takes_nothing(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await unclaim(world, intent)
        old = world.session
        await world.connect()
        found = await world.storage.recover(Known(session=old, in_hand=held(intent)))
        assert (found.stale, found.taken) == (True, ())
        assert (await world.read(intent.id)).state is State.PENDING

    async def test_what_another_broker_holds_is_not_taken(self, world: World) -> None:
        """Ids say nothing of who may have them: a row in other hands stays there."""
        intent = await world.claimed(Op.STOP, await world.new_agent())
        mine = world.session
        world.broker = await world.new_broker()
        await world.connect()
        known = Known(session=world.session, in_hand=(_raised(held(intent)[0]),))
        assert (await world.storage.recover(known)).taken == ()
        row = await world.read(intent.id)
        assert (row.attempts, row.claimed_session) == (intent.attempts, mine.session_id)

    async def test_it_may_be_repeated(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await unclaim(world, intent)
        await recover(world, intent)
        row = await world.read(intent.id)
        assert await recover(world, intent) == Recovered()
        assert await world.read(intent.id) == row

    async def test_malformed_ids_are_gone(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        odd = Held(intent_id=IntentId("nonsense"), op=Op.STOP, broker_id=world.broker.id, attempt=1)
        found = await world.storage.recover(Known(session=world.session, in_hand=(odd, *held(intent))))
        assert (found.gone, found.strangers) == ((odd.intent_id,), ())

    async def test_a_node_is_told_what_the_rows_say_is_in_its_hands(self, world: World) -> None:
        intents = [await world.claimed(op, await world.new_agent()) for op in (Op.STOP, Op.MESSAGE)]
        await world.record(Op.STOP, await world.new_agent())
        assert set(await world.storage.in_hand(world.node)) == set(held(*intents))
        await world.end(intents[0])
        assert await world.storage.in_hand(world.node) == list(held(intents[1]))
        assert await world.storage.in_hand(NodeId(uuid())) == []

    async def test_an_era_lasts(self, world: World) -> None:
        era = await world.storage.era()
        intent = await world.record(Op.STOP, await world.new_agent())
        assert intent.seq >= era.since
        assert await world.storage.era() == era


async def _as_second_attempt(world: World, intent: Intent) -> Intent:
    """As its node has it in hand: claimed a second time, of which the database knows nothing."""
    await world.put_back(intent)
    [second] = (await world.claim()).intents
    text = "UPDATE broker_dispatch SET attempts = 1 WHERE id = :id"
    await world.storage.sql.run(sa.text(text), {"id": intent.id})
    return second


def _raised(one: Held) -> Held:
    return Held(intent_id=one.intent_id, op=one.op, broker_id=one.broker_id, attempt=one.attempt + 1)
