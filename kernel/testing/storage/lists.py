"""Pages, inboxes, explanations, history: what is read, walked to its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import msgspec
import pytest

from kernel.agent import AgentChange, Phase
from kernel.clock import Instant
from kernel.intent import IntentId, Op, State
from kernel.storage import AgentFilter, IntentFilter, Keyset, Page, Recording
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import FAILURE, World, ids, uuid
from kernel.transition import ACCEPTED, ROUTED

SAME = Instant(1_700_000_000_000_000)


async def walk(read: Callable[[Page], Awaitable[Sequence[Any]]], created: str, limit: int) -> list[Any]:
    """Every row, page after page, as a client walks them."""
    found: list[Any] = []
    after = None
    while True:
        rows = await read(Page(limit=limit, after=after))
        assert len(rows) <= limit + 1
        found += rows[:limit]
        if len(rows) <= limit:
            return found
        after = Keyset(created=getattr(rows[limit - 1], created), id=rows[limit - 1].id)


class ListContract(StorageContract):
    async def _intents(self, world: World, count: int) -> list[str]:
        """Of both lanes, half of them made at one and the same instant."""
        agents = [await world.new_agent() for _ in range(3)]
        new = [
            world.intent(
                Op.MESSAGE if number % 3 == 0 else Op.STOP,
                agents[number % 3],
                created_at=SAME if number % 2 else Instant(SAME + number),
            )
            for number in range(count)
        ]
        recorded = await world.storage.record(Recording(intents=tuple(new)))
        newest = sorted(recorded.intents, key=lambda one: (one.created_at, one.id), reverse=True)
        return ids(newest)

    @pytest.mark.parametrize("limit", [1, 2, 7, 200])
    async def test_intents_are_walked_newest_first_each_once(self, world: World, limit: int) -> None:
        expected = await self._intents(world, 31)
        where = IntentFilter()
        found = await walk(lambda page: world.storage.list_intents(where, page), "created_at", limit)
        assert ids(found) == expected

    async def test_messages_that_were_said_together_are_listed_together(self, world: World) -> None:
        group, agents = uuid(), [await world.new_agent() for _ in range(3)]
        new = [world.intent(Op.MESSAGE, agent) for agent in agents]
        said = [
            msgspec.structs.replace(one, message=world.message(one.id, agent, group_id=group, broadcasted=True))
            for one, agent in zip(new, agents, strict=True)
        ]
        await world.storage.record(Recording(intents=(*said, world.intent(Op.MESSAGE, agents[0]))))
        where = IntentFilter(group_id=group.upper())
        assert set(ids(await world.storage.list_intents(where, Page()))) == {one.id for one in new}
        assert await world.storage.count_intents(where) == 3
        assert await world.storage.list_intents(IntentFilter(group_id=group, op=Op.STOP), Page()) == []
        assert await world.storage.list_intents(IntentFilter(group_id="no id"), Page()) == []
        [message] = await world.storage.list_messages(agents[1].id, Page())
        assert (message.group_id, message.broadcasted) == (group, True)

    async def test_what_comes_while_a_list_is_walked_disturbs_nothing(self, world: World) -> None:
        expected = await self._intents(world, 20)
        agent = await world.new_agent()

        async def read(page: Page) -> Sequence[Any]:
            rows = await world.storage.list_intents(IntentFilter(), page)
            await world.record(Op.STOP, agent)
            return rows

        assert ids(await walk(read, "created_at", 3)) == expected

    async def test_intents_are_listed_by_each_filter(self, world: World) -> None:
        one, two = await world.new_agent(), await world.new_agent()
        stop, said = await world.record(Op.STOP, one), await world.record(Op.MESSAGE, two)
        failed = await world.claimed(Op.START, await world.new_agent())
        await world.end(failed, state=State.FAILED, error=FAILURE)
        done = await world.record(Op.STOP, await world.new_agent())
        await world.claim()
        await world.end(await world.read(done.id))
        world.broker = await world.new_broker()
        project = await world.new_project()
        far = await world.record(Op.STOP, await world.new_agent(project_id=project.id))
        expected: list[tuple[IntentFilter, set[str]]] = [
            (IntentFilter(agent_id=one.id), {stop.id}),
            (IntentFilter(agent_id=two.id, op=Op.MESSAGE), {said.id}),
            (IntentFilter(agent_id=two.id, op=Op.STOP), set()),
            (IntentFilter(op=Op.START), {failed.id}),
            (IntentFilter(state=State.FAILED), {failed.id}),
            (IntentFilter(state=State.DONE), {done.id}),
            (IntentFilter(state=State.PENDING), {far.id}),
            (IntentFilter(state=State.IN_PROGRESS), {stop.id, said.id}),
            (IntentFilter(state=State.EXPIRED), set()),
            (IntentFilter(broker_id=world.broker.id), {far.id}),
            (IntentFilter(project_id=project.id), {far.id}),
            (IntentFilter(project_id=project.id.upper()), {far.id}),
            (IntentFilter(agent_id="nonsense"), set()),
            (IntentFilter(broker_id="\udcff"), set()),
        ]
        for where, wanted in expected:
            assert set(ids(await world.storage.list_intents(where, Page()))) == wanted, where
            assert await world.storage.count_intents(where) == len(wanted), where

    async def test_who_follows_an_intent_is_told_of_its_agent_too(self, world: World) -> None:
        agent = await world.new_agent(Phase.RUNNING)
        stop = await world.claimed(Op.STOP, agent)
        said = await world.record(Op.MESSAGE, agent)
        await world.end(stop, change=AgentChange(phase=Phase.STOPPED))
        lost = await world.record(Op.DELETE, world.agent())
        found = await world.storage.follow([said.id, lost.id, IntentId("nonsense"), stop.id])
        assert [intent.id for intent, _ in found] == [said.id, lost.id, stop.id]
        assert [told and told.phase for _, told in found] == [Phase.STOPPED, None, Phase.STOPPED]

    async def test_intents_are_found_by_id_in_the_order_asked(self, world: World) -> None:
        agent = await world.new_agent()
        stop, said = await world.record(Op.STOP, agent), await world.record(Op.MESSAGE, agent)
        user = await world.storage.add_message(world.message(uuid(), agent, recipient="user:one", recipient_id="one"))
        asked = [said.id, "nonsense", stop.id, "\udcff", user.id, uuid(), said.id.upper(), ""]
        found = await world.storage.find_intents(asked)  # type: ignore[arg-type]
        assert ids(found) == [said.id, stop.id]

    async def test_other_lists_are_walked_to_their_ends(self, world: World) -> None:
        agents = [(await world.new_agent()).id for _ in range(7)]
        for _ in range(4):
            await world.new_project()
            await world.new_broker()
        where = AgentFilter(project_id=world.project.id)
        found = await walk(lambda page: world.storage.list_agents(where, page), "created", 2)
        assert [one.id for one in found] == agents[::-1]
        projects = await walk(world.storage.list_projects, "created", 2)
        assert len({one.id for one in projects}) == await world.storage.count_projects() == 5
        brokers = await walk(world.storage.list_brokers, "created", 2)
        assert len({one.id for one in brokers}) == await world.storage.count_brokers() == 5

    async def test_a_cursor_from_nowhere_is_no_fault(self, world: World) -> None:
        await self._intents(world, 3)
        for created in (0, -1, 2**63 - 1, 2**80):
            page = Page(after=Keyset(created=Instant(created), id="nonsense"))
            await world.storage.list_intents(IntentFilter(), page)
            await world.storage.list_agents(AgentFilter(), page)


class InboxContract(StorageContract):
    async def test_a_message_to_a_user_is_stored_and_never_dispatched(self, world: World) -> None:
        agent = await world.new_agent()
        said = world.message(uuid(), agent, recipient="user:one", recipient_id="one", msg="ü🚂", agent_id=agent.id)
        added = await world.storage.add_message(said)
        assert (added.msg, added.dispatch_state, added.read) == ("ü🚂", State.NONE, False)
        assert await world.storage.list_messages("one", Page()) == [added]
        assert (await world.claim()).intents == ()
        assert (await world.view(agent.id)).waiting == frozenset()
        assert (await world.storage.unfinished()).stuck_messages == 0
        assert await world.storage.list_intents(IntentFilter(), Page()) == []

    async def test_a_message_to_a_user_stays_out_of_the_dispatch_whatever_it_says(self, world: World) -> None:
        said = world.message(uuid(), await world.new_agent(), recipient_id="one", dispatch_state=State.PENDING)
        assert (await world.storage.add_message(said)).dispatch_state is State.NONE

    async def test_an_inbox_is_walked_newest_first(self, world: World) -> None:
        agent = await world.new_agent()
        sent = [
            (await world.storage.add_message(world.message(uuid(), agent, recipient_id="one"))).id for _ in range(9)
        ]
        await world.storage.add_message(world.message(uuid(), agent, recipient_id="two"))
        found = await walk(lambda page: world.storage.list_messages("one", page), "created", 4)
        assert [one.id for one in found] == sent[::-1]

    async def test_an_inbox_is_filtered(self, world: World) -> None:
        agent = await world.new_agent()
        first = await world.storage.add_message(
            world.message(uuid(), agent, recipient_id="one", type="question", agent_id=agent.id)
        )
        second = await world.storage.add_message(world.message(uuid(), agent, recipient_id="one"))
        inbox = world.storage.list_messages
        assert await inbox("one", Page(), type="question") == [first]
        assert await inbox("one", Page(), agent_id=agent.id) == [first]
        assert await inbox("one", Page(), project_id=world.project.id) == [second, first]
        assert await inbox("one", Page(), project_id=uuid()) == []
        assert await world.storage.mark_read(second.id, "one")
        assert await inbox("one", Page(), unread=True) == [first]

    async def test_an_inbox_is_counted_as_it_is_filtered(self, world: World) -> None:
        agent = await world.new_agent()
        read = await world.storage.add_message(
            world.message(uuid(), agent, recipient_id="one", type="question", agent_id=agent.id)
        )
        await world.storage.add_message(world.message(uuid(), agent, recipient_id="one"))
        await world.storage.add_message(world.message(uuid(), agent, recipient_id="two"))
        await world.storage.mark_read(read.id, "one")
        count = world.storage.count_messages
        assert await count("one") == 2
        assert await count("one", unread=True) == 1
        assert await count("one", type="question", agent_id=agent.id) == 1
        assert await count("one", type="question", unread=True) == 0
        assert await count("one", project_id=uuid()) == 0
        assert await count("nobody") == 0

    async def test_only_its_recipient_reads_a_message(self, world: World) -> None:
        said = await world.storage.add_message(world.message(uuid(), await world.new_agent(), recipient_id="one"))
        assert not await world.storage.mark_read(said.id, "two")
        assert not await world.storage.mark_read(uuid(), "one")
        assert not await world.storage.mark_read("nonsense", "one")
        assert await world.storage.list_messages("one", Page(), unread=True) == [said]

    async def test_a_message_tells_what_became_of_its_delivery(self, world: World) -> None:
        agent = await world.new_agent()
        said = await world.claimed(Op.MESSAGE, agent)
        assert (await world.storage.list_messages(agent.id, Page()))[0].dispatch_state is State.IN_PROGRESS
        await world.end(said)
        assert (await world.storage.list_messages(agent.id, Page()))[0].dispatch_state is State.DONE


class HistoryContract(StorageContract):
    async def _steps(self, world: World, intent_id: str) -> list[tuple[str, str, str]]:
        view = await world.storage.explain(intent_id)  # type: ignore[arg-type]
        assert view is not None
        assert [step.n for step in view.history] == list(range(1, len(view.history) + 1))
        assert [step.at for step in view.history] == sorted(step.at for step in view.history)
        return [(step.from_state, step.to_state, step.reason) for step in view.history]

    @pytest.mark.parametrize("op", [Op.STOP, Op.MESSAGE])
    async def test_every_step_of_a_recorded_intent_is_kept(self, world: World, op: Op) -> None:
        intent = await world.claimed(op, await world.new_agent())
        await world.put_back(intent, reason="broker_503")
        [again] = (await world.claim()).intents
        settled = await world.end(again)
        assert await self._steps(world, intent.id) == [
            (ACCEPTED, ROUTED, "forward"),
            (ROUTED, "pending", "recorded"),
            ("pending", "in_progress", "claimed"),
            ("in_progress", "pending", "broker_503"),
            ("pending", "in_progress", "claimed"),
            ("in_progress", "done", "answered"),
        ]
        view = await world.storage.explain(intent.id)
        assert view is not None
        assert view.history[-1] == settled.transitions[0]
        assert (view.history[-1].epoch, view.history[-1].attempt) == (world.session.epoch, 2)

    async def test_every_step_of_a_local_call_is_kept(self, world: World) -> None:
        new = world.intent(Op.STOP, await world.new_agent(), route="local")
        settled = await world.storage.insert_ended(new, world.ending(new))
        steps = await self._steps(world, new.id)
        assert [step[:2] for step in steps] == [
            (ACCEPTED, ROUTED),
            (ROUTED, "in_progress"),
            ("in_progress", "done"),
        ]
        view = await world.storage.explain(new.id)
        assert view is not None
        assert view.history == settled.transitions

    async def test_steps_that_recording_answers_are_those_that_are_kept(self, world: World) -> None:
        new = world.intent(Op.STOP, await world.new_agent())
        recorded = await world.storage.record(Recording(intents=(new,)))
        view = await world.storage.explain(new.id)
        assert view is not None
        assert view.history == recorded.transitions

    async def test_a_refused_write_leaves_no_step(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        before = await self._steps(world, intent.id)
        old = world.session
        await world.connect()
        await world.end(intent, session=old)
        await world.put_back(intent, session=old)
        assert await self._steps(world, intent.id) == [*before, ("in_progress", "pending", "owner_lost")]

    async def test_a_step_tells_how_long_the_state_before_lasted(self, world: World) -> None:
        await world.record(Op.STOP, await world.new_agent())
        await anyio.sleep(0.05)
        [step] = (await world.claim()).transitions
        assert 0.04 < step.seconds < 30.0

    # -- explain -----------------------------------------------------------------------------------------------------

    async def test_explain_names_what_is_right_before_it(self, world: World) -> None:
        agent = await world.new_agent()
        first, second, third = [await world.record(Op.STOP, agent) for _ in range(3)]
        await world.record(Op.MESSAGE, agent)
        for intent, behind in ((first, None), (second, first), (third, second)):
            view = await world.storage.explain(intent.id)
            assert view is not None
            assert (view.behind and view.behind.id) == (behind and behind.id)
            assert view.agent == agent
            assert view.broker is not None
            assert view.broker.online

    async def test_explain_tells_what_the_broker_has_in_hand_and_what_time_it_is(self, world: World) -> None:
        agent, other = await world.new_agent(), await world.new_agent()
        await world.claimed(Op.STOP, agent)
        await world.claimed(Op.MESSAGE, other)
        intent = await world.record(Op.STOP, agent)
        view = await world.storage.explain(intent.id)
        assert view is not None
        assert view.in_flight == 2
        assert view.owner is not None
        assert (view.owner.id, view.owner.version) == (world.node, "test")
        assert intent.created_at <= view.now < intent.created_at + 60_000_000

    async def test_explain_tells_whether_the_owner_lives(self, world: World) -> None:
        intent = await world.claimed(Op.STOP, await world.new_agent())
        view = await world.storage.explain(intent.id)
        assert view is not None
        assert view.owner_alive
        await world.storage.remove_node(world.node)
        view = await world.storage.explain(intent.id)
        assert view is not None
        assert not view.owner_alive

    @pytest.mark.parametrize("unknown", ["", "nonsense", "\udcff", "00000000-0000-7000-8000-000000000000"])
    async def test_explain_of_nothing_is_nothing(self, world: World, unknown: str) -> None:
        assert await world.storage.explain(unknown) is None  # type: ignore[arg-type]

    async def test_gauges_count_what_is_unfinished(self, world: World) -> None:
        agent = await world.new_agent()
        await world.record(Op.STOP, agent)
        await world.record(Op.START, agent)
        await world.record(Op.MESSAGE, agent)
        await world.claim()
        ended = await world.claimed(Op.STOP, await world.new_agent())
        await world.end(ended)
        assert (await world.storage.unfinished()).counts == {
            (Op.STOP, State.IN_PROGRESS): 1,
            (Op.START, State.PENDING): 1,
            (Op.MESSAGE, State.IN_PROGRESS): 1,
        }


class PruningContract(StorageContract):
    async def _history(self, world: World, count: int) -> list[IntentId]:
        ended = []
        for number in range(count):
            intent = await world.claimed(Op.STOP if number % 2 else Op.MESSAGE, await world.new_agent())
            await world.end(intent)
            ended.append(intent.id)
        return ended

    async def test_what_ended_long_ago_goes_with_its_history(self, world: World) -> None:
        ended = await self._history(world, 4)
        await anyio.sleep(0.02)
        assert await world.storage.prune(0.01, 100) >= 4
        assert await world.storage.find_intents(ended) == []
        assert await world.storage.explain(ended[0]) is None
        assert await world.storage.prune(0.01, 100) == 0

    async def test_nothing_of_what_was_pruned_is_left(self, world: World) -> None:
        new = world.intent(Op.STOP, await world.new_agent())
        await world.storage.insert_ended(new, world.ending(new))
        await anyio.sleep(0.02)
        await world.storage.prune(0.01, 100)
        recorded = await world.storage.record(Recording(intents=(new,)))
        assert [step.n for step in recorded.transitions] == [1, 2]

    async def test_pruning_is_bounded(self, world: World) -> None:
        await self._history(world, 10)
        await anyio.sleep(0.02)
        gone = []
        while removed := await world.storage.prune(0.01, 4):
            assert removed <= 4
            gone.append(removed)
        assert sum(gone) >= 10
        assert await world.storage.list_intents(IntentFilter(), Page()) == []

    async def test_what_is_within_its_retention_stays(self, world: World) -> None:
        ended = await self._history(world, 2)
        await world.storage.prune(3600.0, 100)
        assert len(await world.storage.find_intents(ended)) == 2

    async def test_what_is_unfinished_stays_however_old(self, world: World) -> None:
        pending = await world.record(Op.STOP, await world.new_agent(), created_at=SAME)
        held = await world.claimed(Op.MESSAGE, await world.new_agent(), created_at=SAME)
        await world.storage.prune(0.0, 100)
        assert ids(await world.storage.find_intents([pending.id, held.id])) == [pending.id, held.id]

    async def test_messages_to_users_stay(self, world: World) -> None:
        said = await world.storage.add_message(world.message(uuid(), await world.new_agent(), recipient_id="one"))
        await anyio.sleep(0.02)
        await world.storage.prune(0.0, 100)
        assert await world.storage.list_messages("one", Page()) == [said]

    async def test_agents_that_were_deleted_long_ago_go(self, world: World) -> None:
        kept, agent = await world.new_agent(), await world.new_agent()
        await world.end(await world.claimed(Op.DELETE, agent), change=AgentChange(removal="soft"))
        await world.storage.prune(3600.0, 100)
        assert await world.storage.find_agent(agent.id) is not None
        await anyio.sleep(0.02)
        await world.storage.prune(0.01, 100)
        assert await world.storage.find_agent(agent.id) is None
        assert await world.storage.find_agent(kept.id) is not None
