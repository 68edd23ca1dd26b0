"""What is true once a call is recorded: its row, its key, its agent, its history; and what a repeat gets."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest

from kernel.agent import Phase
from kernel.broker import BrokerId, Provider
from kernel.errors import AlreadyExists, Failure, IdempotencyConflict, Invalid, NotFound
from kernel.intent import Op, State
from kernel.message import Message
from kernel.storage import IdempotencyKey, NewIntent, Page, Recorded, Recording
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import World, ids, uuid

LARGE = "Ünïcode 🚂 \u202e עברית \x7f " + "x" * 100_000


def key(name: str = "key", request: str = "hash", principal: str = "user:test") -> IdempotencyKey:
    return IdempotencyKey(principal=principal, key=name, request_hash=request)


class RecordingContract(StorageContract):
    async def test_everything_of_an_intent_comes_back(self, world: World) -> None:
        agent = await world.new_agent()
        values: dict[str, Any] = {
            "traceparent": "00-1-2-01",
            "run_id": uuid(),
            "hold": True,
            "args": {"task": LARGE, "deep": {"list": [1, 2.5, None, True, "ß"]}},
            "sealed": bytes(range(256)) * 100,
            "route": "hold",
        }
        recorded = await world.record(Op.START, agent, **values)
        found = await world.read(recorded.id)
        assert found == recorded
        for name, value in values.items():
            assert getattr(found, name) == value
        assert (found.state, found.attempts, found.error, found.result) == (State.PENDING, 0, None, None)

    async def test_everything_of_a_message_comes_back(self, world: World) -> None:
        agent = await world.new_agent()
        new = world.intent(Op.MESSAGE, agent)
        said = world.message(new.id, agent, msg=LARGE, urgent=True, envelope={"thread": "é", "n": [1]}, type="question")
        recorded = await world.storage.record(Recording(intents=(_with(new, said),)))
        [message] = await world.storage.list_messages(agent.id, Page())
        assert (message.id, message.msg, message.urgent) == (new.id, LARGE, True)
        assert (message.envelope, message.type) == ({"thread": "é", "n": [1]}, "question")
        assert message.dispatch_state is State.PENDING
        assert recorded.intents[0].agent_id == agent.id
        assert (await world.read(new.id)).op is Op.MESSAGE

    @pytest.mark.parametrize("field", ["msg", "envelope"])
    async def test_a_text_that_is_no_text_is_refused(self, world: World, field: str) -> None:
        """Half of a surrogate pair: valid in JSON, not in UTF-8."""
        agent = await world.new_agent()
        new = world.intent(Op.MESSAGE, agent)
        bad = "\ud83d" if field == "msg" else {"thread": "\ud83d"}
        with pytest.raises(Invalid):
            await world.storage.record(Recording(intents=(_with(new, world.message(new.id, agent, **{field: bad})),)))
        assert await world.storage.find_intents([new.id]) == []

    async def test_a_recorded_intent_has_a_deadline(self, world: World) -> None:
        agent = await world.new_agent()
        intent = await world.record(Op.STOP, agent, deadline_in=10.0)
        assert 9_000_000 < intent.deadline_at - intent.created_at <= 10_000_000 + 50_000
        sooner = await world.record(Op.START, agent, deadline_in=10.0, deadline_at=intent.created_at)
        assert sooner.deadline_at == intent.created_at

    async def test_an_id_that_exists_answers_its_row(self, world: World) -> None:
        new = world.intent(Op.STOP, await world.new_agent())
        first = await world.storage.record(Recording(intents=(new,)))
        await world.claim()
        again = await world.storage.record(Recording(intents=(new,)))
        assert ids(again.intents) == ids(first.intents)
        assert again.intents[0].state is State.IN_PROGRESS
        assert again.transitions == ()

    async def test_a_new_agent_is_stored_with_its_create(self, world: World) -> None:
        agent, intent = await world.creation()
        view = await world.view(agent.id)
        assert (view.agent.slug, view.agent.phase, view.project.id) == (agent.slug, Phase.CREATED, world.project.id)
        assert view.broker is not None
        assert intent.agent_id == agent.id
        assert world.broker.id in [broker.id for broker in await world.storage.list_providers(world.project.id)]

    async def test_a_slug_that_is_taken_stores_nothing_at_all(self, world: World) -> None:
        agent = await world.new_agent()
        other = world.agent(slug=agent.slug)
        new = world.intent(Op.CREATE, other)
        with pytest.raises(AlreadyExists):
            await world.storage.record(Recording(intents=(new,), agent=other, key=key()))
        assert await world.storage.find_intents([new.id]) == []
        assert await world.storage.find_key(key()) is None

    async def test_a_missing_project_is_not_a_taken_name(self, world: World) -> None:
        agent = world.agent(project_id=uuid())
        with pytest.raises(Invalid):
            await world.storage.record(Recording(agent=agent))

    async def test_a_missing_broker_is_no_provider(self, world: World) -> None:
        provider = Provider(project_id=world.project.id, broker_id=BrokerId(uuid()), broker_name="none")
        with pytest.raises(Invalid):
            await world.storage.record(Recording(agent=world.agent(), provider=provider))

    async def test_a_provider_is_linked_once(self, world: World) -> None:
        await world.creation()
        await world.creation()
        assert len(await world.storage.list_providers(world.project.id)) == 1

    async def test_the_same_slug_lives_in_two_projects(self, world: World) -> None:
        agent = await world.new_agent()
        other = await world.new_project()
        await world.new_agent(slug=agent.slug, project_id=other.id)

    async def test_of_two_that_take_one_slug_at_once_one_gets_it(self, world: World) -> None:
        slug, outcomes = f"slug-{uuid()}", []

        async def take() -> None:
            try:
                await world.new_agent(slug=slug)
                outcomes.append(True)
            except AlreadyExists:
                outcomes.append(False)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(take)
        assert sorted(outcomes) == [False] * 7 + [True]

    async def test_many_intents_are_one_commit(self, world: World) -> None:
        agents = [await world.new_agent() for _ in range(3)]
        new = tuple(world.intent(Op.MESSAGE, agent) for agent in agents)
        recorded = await world.storage.record(Recording(intents=new, key=key()))
        assert ids(recorded.intents) == [one.id for one in new]
        repeated = await world.storage.find_key(key())
        assert repeated is not None
        assert repeated.intent_id == new[0].id

    async def test_a_thousand_intents_are_one_commit_and_keep_their_order(self, world: World) -> None:
        agents = [await world.new_agent() for _ in range(5)]
        new = tuple(world.intent(Op.MESSAGE, agents[n % 5]) for n in range(1000))
        recorded = await world.storage.record(Recording(intents=new))
        assert ids(recorded.intents) == [one.id for one in new]
        numbers = [intent.seq for intent in recorded.intents]
        assert numbers == sorted(set(numbers))
        again = await world.storage.record(Recording(intents=new))
        assert ids(again.intents) == ids(recorded.intents)
        assert again.transitions == ()

    async def test_the_answer_of_a_call_that_makes_many_is_kept_with_its_key(self, world: World) -> None:
        agent = await world.new_agent()
        first, later = (tuple(world.intent(Op.MESSAGE, agent) for _ in range(2)) for _ in range(2))
        await world.storage.record(Recording(intents=first, key=key(), answer=b"first"))
        repeated = await world.storage.record(Recording(intents=later, key=key(), answer=b"later"))
        assert repeated.repeated is not None
        assert repeated.repeated.answer == b"first"
        assert await world.storage.find_intents([new.id for new in later]) == []
        with pytest.raises(IdempotencyConflict):
            await world.storage.record(Recording(intents=later, key=key(request="other"), answer=b"later"))

    async def test_an_answer_about_nobody_is_kept_too(self, world: World) -> None:
        await world.storage.record(Recording(key=key(), answer=b"nobody"))
        found = await world.storage.find_key(key())
        assert found is not None
        assert (found.intent_id, found.answer) == (None, b"nobody")

    @pytest.mark.parametrize("gone", [True, False], ids=["deleted", "unknown"])
    async def test_no_agent_is_made_on_a_broker_that_is_gone(self, world: World, gone: bool) -> None:
        agent = world.agent(runtime_broker_id=world.broker.id if gone else uuid())
        if gone:
            await world.storage.delete_broker(world.broker.id)
        recording = Recording(intents=(world.intent(Op.CREATE, agent),), agent=agent)
        with pytest.raises(NotFound):
            await world.storage.record(recording)
        assert await world.storage.find_agent(agent.id) is None
        assert await world.storage.find_intents([recording.intents[0].id]) == []

    async def test_each_of_many_may_have_a_key_of_its_own(self, world: World) -> None:
        agent = await world.new_agent()
        one, two, three = (world.intent(Op.MESSAGE, agent, key=key(name)) for name in ("a", "b", "a"))
        await world.storage.record(Recording(intents=(one, two)))
        found = await world.storage.find_key(key("b"))
        assert found is not None
        assert found.intent_id == two.id
        other = world.intent(Op.MESSAGE, agent)
        again = await world.storage.record(Recording(intents=(three, other), key=key()))
        assert again.taken == (three.id,)
        assert again.intents == ()
        assert await world.storage.find_intents([three.id, other.id]) == []
        assert await world.storage.find_key(key()) is None

    async def test_a_bad_one_of_many_stores_none(self, world: World) -> None:
        agent = await world.new_agent()
        good, bad = world.intent(Op.STOP, agent), _with(world.intent(Op.MESSAGE, agent), None)
        with pytest.raises(Invalid):
            await world.storage.record(Recording(intents=(good, bad)))
        assert await world.storage.find_intents([good.id, bad.id]) == []

    async def test_intents_of_both_lanes_draw_one_sequence(self, world: World) -> None:
        agent = await world.new_agent()
        numbers = [(await world.record(op, agent)).seq for op in (Op.STOP, Op.MESSAGE, Op.START, Op.MESSAGE)]
        assert numbers == sorted(set(numbers))

    # -- LOCAL work that got its row -----------------------------------------------------------------------------

    async def test_work_in_hand_is_born_in_progress(self, world: World) -> None:
        agent = await world.new_agent()
        intent = await world.record(Op.STOP, agent, attempts=1, claim=world.session)
        claimed = (intent.claimed_by, intent.claimed_session, intent.claimed_epoch)
        assert claimed == (world.node, world.session.session_id, world.session.epoch)
        assert (intent.state, intent.attempts) == (State.IN_PROGRESS, 1)
        assert (await world.end(intent)).accepted

    async def test_work_whose_session_is_gone_is_born_pending_with_its_attempt(self, world: World) -> None:
        agent = await world.new_agent()
        old = world.session
        await world.connect()
        intent = await world.record(Op.STOP, agent, attempts=1, claim=old)
        assert (intent.state, intent.attempts, intent.claimed_by) == (State.PENDING, 1, None)
        [again] = (await world.claim()).intents
        assert again.attempts == 2

    @pytest.mark.parametrize("other", ["node_id", "session_id", "epoch"])
    async def test_work_of_another_session_is_born_pending(self, world: World, other: str) -> None:
        value: Any = 99 if other == "epoch" else uuid()
        claim = msgspec.structs.replace(world.session, **{other: value})
        intent = await world.record(Op.STOP, await world.new_agent(), attempts=1, claim=claim)
        assert (intent.state, intent.attempts) == (State.PENDING, 1)

    async def test_work_of_a_released_session_is_born_pending(self, world: World) -> None:
        agent = await world.new_agent()
        await world.disconnect()
        intent = await world.record(Op.STOP, agent, attempts=1, claim=world.session)
        assert intent.state is State.PENDING

    # -- superseded ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("op", [Op.START, Op.RESTART])
    async def test_a_stop_ends_starts_that_nobody_took(self, world: World, op: Op) -> None:
        agent = await world.new_agent()
        start = await world.record(op, agent)
        recorded = await self._stop(world, world.intent(Op.STOP, agent))
        assert ids(recorded.superseded) == [start.id]
        ended = await world.read(start.id)
        assert (ended.state, ended.error and ended.error.code) == (State.CANCELLED, "cancelled")
        [step] = [step for step in recorded.transitions if step.intent_id == start.id]
        assert (step.reason, step.detail) == ("superseded", {"by": recorded.intents[0].id, "op": "stop"})
        assert [one.op for one in (await world.claim()).intents] == [Op.STOP]

    async def test_a_start_that_was_taken_once_is_not_superseded(self, world: World) -> None:
        agent = await world.new_agent()
        start = await world.claimed(Op.START, agent)
        await world.put_back(start)
        recorded = await self._stop(world, world.intent(Op.STOP, agent))
        assert recorded.superseded == ()
        assert (await world.read(start.id)).state is State.PENDING

    async def test_only_starts_of_that_agent_are_superseded(self, world: World) -> None:
        agent, other = await world.new_agent(), await world.new_agent()
        kept = [await world.record(Op.SUSPEND, agent), await world.record(Op.START, other)]
        kept.append(await world.record(Op.MESSAGE, agent))
        assert (await self._stop(world, world.intent(Op.DELETE, agent))).superseded == ()
        assert {(await world.read(one.id)).state for one in kept} == {State.PENDING}

    async def test_a_start_supersedes_nothing(self, world: World) -> None:
        agent = await world.new_agent()
        first = await world.record(Op.START, agent)
        await world.record(Op.START, agent)
        assert (await world.read(first.id)).state is State.PENDING

    async def test_a_superseded_creation_takes_its_agent_with_it(self, world: World) -> None:
        agent, _ = await world.creation()
        await self._stop(world, world.intent(Op.DELETE, agent))
        assert await world.storage.find_agent(agent.id) is None

    async def _stop(self, world: World, new: NewIntent) -> Recorded:
        return await world.storage.record(Recording(intents=(new,), supersedes_starts=True))

    # -- driven anew -------------------------------------------------------------------------------------------------

    async def test_a_message_that_is_driven_anew_says_the_same(self, world: World) -> None:
        agent = await world.new_agent()
        old = await world.claimed(Op.MESSAGE, agent)
        failure = Failure(code="runtime_error", message="no", status=502)
        await world.end(old, state=State.FAILED, error=failure)
        anew = _with(world.intent(Op.MESSAGE, agent, requeued_from=old.id), None)
        recorded = await world.storage.record(Recording(intents=(anew,)))
        assert recorded.intents[0].requeued_from == old.id
        assert [one.msg for one in await world.storage.list_messages(agent.id, Page())] == ["hello", "hello"]

    # -- keys --------------------------------------------------------------------------------------------------------

    async def test_a_key_that_was_used_names_its_intent(self, world: World) -> None:
        agent = await world.new_agent()
        first = await self._keyed(world, world.intent(Op.STOP, agent))
        again = await self._keyed(world, world.intent(Op.STOP, agent))
        assert again.repeated is not None
        assert again.repeated.intent_id == first.intents[0].id
        assert again.intents == ()
        assert (await world.storage.find_key(key())) == again.repeated

    async def test_a_key_for_another_request_is_a_conflict(self, world: World) -> None:
        agent = await world.new_agent()
        await self._keyed(world, world.intent(Op.STOP, agent))
        other = world.intent(Op.START, agent)
        with pytest.raises(IdempotencyConflict):
            await world.storage.record(Recording(intents=(other,), key=key(request="other")))
        with pytest.raises(IdempotencyConflict):
            await world.storage.find_key(key(request="other"))
        assert await world.storage.find_intents([other.id]) == []

    async def test_two_callers_may_use_one_key(self, world: World) -> None:
        agent = await world.new_agent()
        await self._keyed(world, world.intent(Op.STOP, agent))
        other = Recording(intents=(world.intent(Op.START, agent),), key=key(principal="user:other", request="other"))
        assert (await world.storage.record(other)).repeated is None

    async def test_a_recording_that_is_repeated_whole_gets_its_rows(self, world: World) -> None:
        recording = Recording(intents=(world.intent(Op.STOP, await world.new_agent()),), key=key())
        first = await world.storage.record(recording)
        again = await world.storage.record(recording)
        assert (ids(again.intents), again.repeated) == (ids(first.intents), None)

    async def test_of_calls_with_one_key_at_once_one_makes_an_intent(self, world: World) -> None:
        agent = await world.new_agent()
        outcomes: list[Recorded] = []

        async def call() -> None:
            outcomes.append(await self._keyed(world, world.intent(Op.STOP, agent)))

        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(call)
        made = [one.intents[0].id for one in outcomes if one.intents]
        assert len(made) == 1
        assert {one.repeated.intent_id for one in outcomes if one.repeated} == set(made)

    async def test_an_unknown_key_is_none(self, world: World) -> None:
        assert await world.storage.find_key(key(name="never")) is None

    async def _keyed(self, world: World, new: NewIntent) -> Recorded:
        return await world.storage.record(Recording(intents=(new,), key=key()))


def _with(new: NewIntent, message: Message | None) -> NewIntent:
    return msgspec.structs.replace(new, message=message)
