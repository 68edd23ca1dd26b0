"""How work in hand ends, and that nobody but the hands that hold it can write it."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest
import sqlalchemy as sa

from kernel.agent import Agent, AgentChange, Phase
from kernel.errors import Failure
from kernel.intent import ENDED, Intent, IntentId, Op, State
from kernel.storage import NewIntent, Progress, Recording, Settled
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import World, uuid

ERROR = Failure(code="runtime_error", message="the broker says no", status=502, details={"code": "x"})
ODD = {"deep": [1, {"ü": None}], "large": "y" * 50_000}


class EndContract(StorageContract):
    @pytest.mark.parametrize("op", [Op.STOP, Op.MESSAGE])
    @pytest.mark.parametrize("state", sorted(ENDED))
    async def test_an_end_is_stored_whole(self, world: World, op: Op, state: State) -> None:
        intent = await world.claimed(op, await world.new_agent(), sealed=b"secret")
        sent = intent.claimed_at
        settled = await world.end(intent, state=state, result=ODD, error=ERROR, sent_at=sent, failures=1)
        ended = await world.read(intent.id)
        assert settled.accepted
        assert settled.intent == ended
        assert (ended.state, ended.result, ended.error) == (state, ODD, ERROR)
        assert (ended.sent_at, ended.failures) == (sent, 1)
        assert ended.ended_at is not None
        assert ended.sealed is None, "values for one operation are wiped at its end"

    async def test_an_end_without_result_or_error_has_none(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.end(intent)
        ended = await world.read(intent.id)
        assert (ended.result, ended.error) == (None, None)

    async def test_an_end_that_is_repeated_gets_the_same_end(self, world: World) -> None:
        agent = await world.new_agent(Phase.STOPPED)
        intent = await world.claimed(Op.START, agent)
        first = await world.end(intent, change=AgentChange(phase=Phase.RUNNING))
        again = await world.end(intent, change=AgentChange(phase=Phase.RUNNING))
        assert (again.accepted, again.intent, again.transitions) == (True, first.intent, ())
        assert (await world.read_agent(agent.id)).state_version == agent.state_version + 1

    # -- refused by the statement that would write ------------------------------------------------------------------

    async def test_a_stale_epoch_cannot_end(self, world: World) -> None:
        agent = await world.new_agent()
        intent = await world.claimed(Op.STOP, agent)
        old = world.session
        await world.connect()
        await world.claim()
        settled = await world.end(intent, session=old, change=AgentChange(phase=Phase.STOPPED))
        assert not settled.accepted
        assert (await world.read(intent.id)).state is State.IN_PROGRESS
        assert (await world.read_agent(agent.id)) == agent

    async def test_another_epoch_cannot_end_the_same_attempt(self, world: World) -> None:
        """A failover that undid a claim counts its attempt a second time, under a newer epoch."""
        intent = await world.claimed(Op.STOP, await world.new_agent())
        newer = sa.text("UPDATE broker_dispatch SET claimed_epoch = claimed_epoch + 1")
        await world.storage.sql.run(newer)
        assert not (await world.end(intent)).accepted
        assert (await world.read(intent.id)).state is State.IN_PROGRESS

    async def test_an_older_attempt_cannot_end(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent)
        [second] = (await world.claim()).intents
        assert not (await world.end(intent)).accepted
        assert (await world.read(intent.id)) == second
        assert (await world.end(second)).accepted

    async def test_what_is_pending_cannot_end(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent)
        assert not (await world.end(intent)).accepted
        assert (await world.read(intent.id)).state is State.PENDING

    async def test_what_ended_cannot_end_otherwise(self, world: World) -> None:
        agent = await world.new_agent()
        intent = await world.claimed(Op.STOP, agent)
        await world.end(intent)
        late = await world.end(intent, state=State.FAILED, error=ERROR, change=AgentChange(phase=Phase.ERROR))
        assert not late.accepted
        assert (await world.read(intent.id)).state is State.DONE
        assert (await world.read_agent(agent.id)).phase is Phase.RUNNING

    async def test_an_end_that_another_attempt_wrote_is_not_this_ones(self, world: World) -> None:
        """The same state, but another claim's: a late answer is dropped and counted, not taken for a repeat."""
        intent = await world.claimed(Op.STOP, await world.new_agent())
        old = world.session
        await world.connect()
        [second] = (await world.claim()).intents
        await world.end(second, result={"by": "second"})
        assert not (await world.end(intent, session=old)).accepted
        assert not (await world.end(second, session=old)).accepted
        assert not (await world.end(intent)).accepted
        assert (await world.read(intent.id)).result == {"by": "second"}

    async def test_an_end_of_nothing_is_not_accepted(self, world: World) -> None:
        new = world.intent(Op.STOP, await world.new_agent())
        for unknown in (new.id, "nonsense"):
            assert not (await world.storage.end(world.ending(new, intent_id=IntentId(unknown)))).accepted

    async def test_of_ends_that_race_one_is_written(self, world: World) -> None:
        agent = await world.new_agent()
        intent = await world.claimed(Op.STOP, agent)
        outcomes: list[Settled] = []

        async def end(state: State) -> None:
            outcomes.append(await world.end(intent, state=state, change=AgentChange(message=state.value)))

        async with anyio.create_task_group() as tasks:
            for state in (State.DONE, State.FAILED, State.EXPIRED, State.CANCELLED):
                tasks.start_soon(end, state)
        accepted = [one for one in outcomes if one.accepted]
        assert len(accepted) == 1
        assert accepted[0].intent is not None
        assert (await world.read_agent(agent.id)).message == accepted[0].intent.state

    # -- put back ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("op", [Op.STOP, Op.MESSAGE])
    async def test_an_attempt_that_is_no_end_is_pending_again(self, world: World, op: Op) -> None:
        intent = await world.claimed(op, await world.new_agent(), sealed=b"kept")
        settled = await world.put_back(intent, failures=1, error=ERROR, retry_in=5.0)
        back = await world.read(intent.id)
        assert settled.accepted
        assert settled.intent == back
        assert (back.state, back.attempts, back.failures) == (State.PENDING, 1, 1)
        assert (back.error, back.claimed_by, back.sealed) == (ERROR, None, b"kept")
        assert back.next_attempt_at is not None

    async def test_a_put_back_without_error_keeps_the_last_one(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent, error=ERROR)
        [again] = (await world.claim()).intents
        await world.put_back(again, reason="link_lost")
        assert (await world.read(intent.id)).error == ERROR

    async def test_a_stale_epoch_cannot_put_back(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        old = world.session
        await world.connect()
        [mine] = (await world.claim()).intents
        assert not (await world.put_back(intent, session=old)).accepted
        assert not (await world.put_back(mine, session=old)).accepted
        assert (await world.read(intent.id)).state is State.IN_PROGRESS

    async def test_an_older_attempt_cannot_put_back(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent)
        [second] = (await world.claim()).intents
        assert not (await world.put_back(intent)).accepted
        assert (await world.read(intent.id)) == second

    async def test_what_ended_cannot_be_put_back(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.end(intent)
        assert not (await world.put_back(intent)).accepted
        assert (await world.read(intent.id)).state is State.DONE

    # -- progress ----------------------------------------------------------------------------------------------------

    async def test_progress_is_stamped_once_and_kept(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.storage.progress([self._step(world, intent, sent=True)])
        sent = await world.read(intent.id)
        assert (sent.sent_at is not None, sent.accepted_at) == (True, None)
        await anyio.sleep(0.01)
        await world.storage.progress([self._step(world, intent, sent=True, accepted=True)])
        accepted = await world.read(intent.id)
        assert accepted.sent_at == sent.sent_at
        assert (accepted.accepted_at or 0) > (sent.sent_at or 0)
        assert (accepted.progress_at or 0) > (sent.progress_at or 0)

    async def test_progress_of_another_epoch_or_attempt_changes_nothing(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        wrong: list[dict[str, Any]] = [{"epoch": world.session.epoch + 1}, {"attempt": intent.attempts + 1}]
        await world.storage.progress([self._step(world, intent, sent=True, **fields) for fields in wrong])
        assert await world.read(intent.id) == intent

    async def test_progress_of_what_is_pending_or_unknown_changes_nothing(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.put_back(intent)
        before = await world.read(intent.id)
        unknown = self._step(world, intent, sent=True, intent_id=IntentId("nonsense"))
        await world.storage.progress([self._step(world, intent, sent=True), unknown])
        assert await world.read(intent.id) == before

    async def test_a_new_attempt_begins_unsent(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        await world.storage.progress([self._step(world, intent, sent=True, accepted=True)])
        await world.put_back(intent, reason="link_lost")
        [again] = (await world.claim()).intents
        assert (again.sent_at, again.accepted_at, again.progress_at) == (None, None, None)

    def _step(self, world: World, intent: Intent, **more: Any) -> Progress:
        values: dict[str, Any] = {
            "intent_id": intent.id,
            "op": intent.op,
            "epoch": world.session.epoch,
            "attempt": intent.attempts,
        }
        return Progress(**{**values, **more})


class LocalContract(StorageContract):
    """A LOCAL call of which nothing was written before its end."""

    async def test_a_local_call_is_stored_ended(self, world: World) -> None:
        agent = await world.new_agent()
        new = world.intent(Op.STOP, agent, sealed=b"secret", args={"force": True})
        ending = world.ending(new, result=ODD, change=AgentChange(phase=Phase.STOPPED))
        settled = await world.storage.insert_ended(new, ending)
        ended = await world.read(new.id)
        assert settled.accepted
        assert settled.intent == ended
        assert (ended.state, ended.attempts, ended.result, ended.args) == (State.DONE, 1, ODD, {"force": True})
        assert (ended.claimed_epoch, ended.claimed_by, ended.sealed) == (world.session.epoch, world.node, None)
        assert settled.agent == await world.read_agent(agent.id)
        assert settled.agent is not None
        assert settled.agent.phase is Phase.STOPPED

    async def test_after_a_newer_session_the_fact_is_kept_and_the_agent_left_alone(self, world: World) -> None:
        agent = await world.new_agent()
        new = world.intent(Op.STOP, agent)
        old = world.session
        await world.connect()
        ending = world.ending(new, session=old, change=AgentChange(phase=Phase.STOPPED))
        settled = await world.storage.insert_ended(new, ending)
        assert settled.accepted
        assert (await world.read(new.id)).state is State.DONE
        assert await world.read_agent(agent.id) == agent

    async def test_a_local_end_that_is_repeated_is_stored_once(self, world: World) -> None:
        agent = await world.new_agent()
        new = world.intent(Op.STOP, agent)
        ending = world.ending(new, change=AgentChange(phase=Phase.STOPPED))
        first = await world.storage.insert_ended(new, ending)
        again = await world.storage.insert_ended(new, ending)
        assert (again.accepted, again.intent) == (True, first.intent)
        assert (await world.read_agent(agent.id)).state_version == agent.state_version + 1

    async def test_a_local_end_of_what_got_its_row_is_fenced_like_any(self, world: World) -> None:
        agent = await world.new_agent()
        new = world.intent(Op.STOP, agent)
        old = world.session
        await world.storage.record(_recording(new, attempts=1, claim=old))
        await world.connect()
        settled = await world.storage.insert_ended(new, world.ending(new, session=old))
        assert not settled.accepted
        assert (await world.read(new.id)).state is State.PENDING

    async def test_a_local_end_tells_what_waits_behind_it(self, world: World) -> None:
        agent = await world.new_agent()
        new = world.intent(Op.STOP, agent)
        await world.record(Op.START, agent)
        assert (await world.storage.insert_ended(new, world.ending(new))).waiting


def _recording(new: NewIntent, **more: Any) -> Recording:
    return Recording(intents=(msgspec.structs.replace(new, **more),))


class AgentChangeContract(StorageContract):
    """What an end does to its agent's row, in the same commit."""

    async def _changed(self, world: World, agent: Agent, change: AgentChange) -> Agent:
        intent = await world.claimed(Op.STOP, agent)
        settled = await world.end(intent, change=change)
        after = await world.read_agent(agent.id)
        assert settled.agent == after
        return after

    @pytest.mark.parametrize("old", list(Phase))
    async def test_an_end_may_take_any_edge(self, world: World, old: Phase) -> None:
        for new in Phase:
            agent = await world.new_agent(old)
            after = await self._changed(world, agent, AgentChange(phase=new))
            assert (after.phase, after.state_version) == (new, agent.state_version + 1)

    async def test_fields_that_are_not_named_are_left_alone(self, world: World) -> None:
        agent = await world.new_agent(
            image="i", runtime="r", message="m", detail={"a": 1}, run_id=uuid(), activity="working"
        )
        after = await self._changed(world, agent, AgentChange())
        for name in ("phase", "image", "runtime", "message", "detail", "run_id", "activity"):
            assert getattr(after, name) == getattr(agent, name)

    async def test_fields_that_are_named_are_stored(self, world: World) -> None:
        agent = await world.new_agent(Phase.STARTING)
        run = uuid()
        change = AgentChange(
            phase=Phase.RUNNING,
            run_id=run,
            activity="working",
            detail={"exitCode": 1},
            image="image",
            runtime="process",
            message="said",
        )
        after = await self._changed(world, agent, change)
        assert (after.phase, after.run_id, after.activity) == (Phase.RUNNING, run, "working")
        assert (after.detail, after.image, after.runtime, after.message) == (
            {"exitCode": 1},
            "image",
            "process",
            "said",
        )
        assert after.started_at is not None

    async def test_an_activity_does_not_outlast_its_run(self, world: World) -> None:
        agent = await world.new_agent(activity="working", run_id=uuid())
        assert (await self._changed(world, agent, AgentChange(phase=Phase.STOPPED))).activity is None
        agent = await world.new_agent(activity="working", run_id=uuid())
        anew = AgentChange(phase=Phase.RUNNING, run_id=uuid())
        assert (await self._changed(world, agent, anew)).activity is None

    async def test_some_activities_outlast_a_run(self, world: World) -> None:
        agent = await world.new_agent(activity="crashed")
        assert (await self._changed(world, agent, AgentChange(phase=Phase.ERROR))).activity == "crashed"

    async def test_an_end_may_take_its_agents_row_back(self, world: World) -> None:
        agent, intent = await world.creation()
        await world.claim()
        settled = await world.end(
            await world.read(intent.id), state=State.FAILED, error=ERROR, change=AgentChange(removal="row")
        )
        assert settled.agent is None
        assert await world.storage.find_agent(agent.id) is None
        assert (await world.read(intent.id)).error == ERROR
        await world.new_agent(slug=agent.slug)

    async def test_an_end_may_mark_its_agent_deleted(self, world: World) -> None:
        agent = await world.new_agent()
        after = await self._changed(world, agent, AgentChange(removal="soft"))
        assert after.deleted_at is not None
        assert await world.storage.find_agent(agent.slug, world.project.id) is None

    async def test_an_end_of_an_agent_that_is_gone_is_accepted(self, world: World) -> None:
        intent = await world.claimed(Op.DELETE, world.agent())
        settled = await world.end(intent, change=AgentChange(removal="soft"))
        assert (settled.accepted, settled.agent) == (True, None)

    async def test_a_stale_end_leaves_the_agent_alone(self, world: World) -> None:
        agent = await world.new_agent()
        intent = await world.claimed(Op.DELETE, agent)
        old = world.session
        await world.connect()
        for change in (AgentChange(removal="row"), AgentChange(removal="soft"), AgentChange(phase=Phase.ERROR)):
            await world.end(intent, session=old, change=change)
        assert await world.read_agent(agent.id) == agent

    @pytest.mark.parametrize("local", [False, True], ids=["recorded", "local"])
    async def test_what_was_held_for_a_deleted_agent_ends_with_it(self, world: World, local: bool) -> None:
        agent = await world.new_agent(Phase.SUSPENDED)
        held = [await world.record(Op.MESSAGE, agent) for _ in range(2)]
        other = await world.record(Op.MESSAGE, await world.new_agent(Phase.SUSPENDED))
        change = AgentChange(removal="soft")
        if local:
            new = world.intent(Op.DELETE, agent)
            settled = await world.storage.insert_ended(new, world.ending(new, change=change))
        else:
            settled = await world.end(await world.claimed(Op.DELETE, agent), change=change)
        assert settled.intent is not None
        assert [one.id for one in settled.dropped] == [one.id for one in held]
        for one in held:
            ended = await world.read(one.id)
            assert (ended.state, ended.error and ended.error.code) == (State.CANCELLED, "cancelled")
        [*_, last] = settled.transitions
        assert (last.reason, last.detail) == ("agent_deleted", {"by": settled.intent.id, "op": "delete"})
        assert (await world.read(other.id)).state is State.PENDING

    async def test_however_much_was_held_for_a_deleted_agent_it_ends(self, world: World) -> None:
        """What is too much for the end itself, the sweep ends."""
        agent = await world.new_agent(Phase.SUSPENDED)
        said = tuple(world.intent(Op.MESSAGE, agent) for _ in range(130))
        await world.storage.record(Recording(intents=said))
        settled = await world.end(await world.claimed(Op.DELETE, agent), change=AgentChange(removal="soft"))
        ended = {one.id for one in settled.dropped}
        assert ended
        while swept := (await world.storage.redrive(world.node, 100)).intents:
            ended |= {one.id for one in swept}
        assert ended == {one.id for one in said}
        assert {one.state for one in await world.storage.find_intents(list(ended))} == {State.CANCELLED}

    async def test_what_was_held_for_an_agent_that_never_came_to_be_ends_with_it(self, world: World) -> None:
        agent, creation = await world.creation()
        held = await world.record(Op.MESSAGE, agent)
        [taken] = (await world.claim()).intents
        settled = await world.end(taken, state=State.FAILED, error=ERROR, change=AgentChange(removal="row"))
        assert taken.id == creation.id
        assert [one.id for one in settled.dropped] == [held.id]
