"""Agents: found by id and by slug, edited and reported by compare-and-set, deleted softly."""

from __future__ import annotations

import anyio
import pytest

from kernel.agent import Agent, AgentChange, AgentId, Phase, Report
from kernel.errors import AlreadyExists, NotFound, VersionConflict
from kernel.intent import Op
from kernel.storage import AgentEdit, AgentFilter, Page
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import World, uuid

MALFORMED = ["", " ", "nonsense", "0", "00000000-0000-0000-0000", "\udcff", "'; --", "ü" * 300, "%"]


class AgentContract(StorageContract):
    async def test_many_agents_are_found_as_each_of_them_is(self, world: World) -> None:
        near, other = await world.new_agent(), await world.new_agent()
        project = await world.new_project()
        far = await world.new_agent(project_id=project.id, slug=near.slug)
        await world.record(Op.MESSAGE, near)
        refs = [near.id.upper(), other.slug, near.slug.upper(), far.id, uuid(), "nobody", "no\x00slug", "-"]
        for home in (None, world.project.id, project.id, uuid(), "no id"):
            each = {ref: await world.storage.find_agent(ref, home) for ref in refs}
            expected = {ref: view for ref, view in each.items() if view}
            assert await world.storage.find_agents(refs, home) == expected
        assert await world.storage.find_agents([], world.project.id) == {}

    async def test_everything_of_an_agent_comes_back(self, world: World) -> None:
        agent = world.agent(
            template="t",
            image="i",
            runtime="process",
            task_summary="Ünïcode 🚂" * 1000,
            labels={"ä": "ö"},
            annotations={"n": "x" * 10_000},
            config={"command": ["a", {"b": None}]},
            detail={"exitCode": 3},
            created_by="user:one",
            owner_id="agent:" + uuid(),
            ancestry=["user:one", uuid()],
            activity="working",
            run_id=uuid(),
        )
        await world.new_agent(**{name: getattr(agent, name) for name in Agent.__struct_fields__})
        found = await world.read_agent(agent.id)
        for name in set(Agent.__struct_fields__) - {"created", "updated"}:
            assert getattr(found, name) == getattr(agent, name), name
        assert found.created > 0

    async def test_an_agent_is_found_by_id_and_by_slug_in_its_project(self, world: World) -> None:
        agent = await world.new_agent()
        for ref, project in ((agent.id, None), (agent.id, world.project.id), (agent.slug, world.project.id)):
            view = await world.storage.find_agent(ref, project)
            assert view is not None
            assert view.agent == agent
            assert view.project.id == world.project.id
            assert view.broker is not None
            assert view.broker.id == world.broker.id

    async def test_an_id_in_capitals_is_the_same_id(self, world: World) -> None:
        agent = await world.new_agent()
        assert await world.storage.find_agent(agent.id.upper()) is not None

    async def test_a_slug_means_nothing_without_or_in_another_project(self, world: World) -> None:
        agent = await world.new_agent()
        other = await world.new_project()
        assert await world.storage.find_agent(agent.slug) is None
        assert await world.storage.find_agent(agent.slug, other.id) is None
        assert await world.storage.find_agent(agent.id, other.id) is None

    @pytest.mark.parametrize("ref", MALFORMED)
    async def test_what_is_malformed_is_not_found_and_never_a_fault(self, world: World, ref: str) -> None:
        assert await world.storage.find_agent(ref) is None
        assert await world.storage.find_agent(ref, world.project.id) is None
        assert await world.storage.find_agent(uuid(), ref) is None

    async def test_an_agent_without_a_broker_is_found(self, world: World) -> None:
        agent = await world.new_agent(runtime_broker_id=None)
        assert (await world.view(agent.id)).broker is None

    # -- deleted -----------------------------------------------------------------------------------------------------

    async def _deleted(self, world: World) -> Agent:
        agent = await world.new_agent()
        await world.end(await world.claimed(Op.DELETE, agent), change=AgentChange(removal="soft"))
        return await world.read_agent(agent.id)

    async def test_a_deleted_agent_is_found_by_id_only(self, world: World) -> None:
        agent = await self._deleted(world)
        assert agent.deleted_at is not None
        assert await world.storage.find_agent(agent.slug, world.project.id) is None

    async def test_a_deleted_agent_frees_its_slug(self, world: World) -> None:
        agent = await self._deleted(world)
        successor = await world.new_agent(slug=agent.slug)
        view = await world.storage.find_agent(agent.slug, world.project.id)
        assert view is not None
        assert view.agent.id == successor.id
        with pytest.raises(AlreadyExists):
            await world.new_agent(slug=agent.slug)

    async def test_deleted_agents_are_listed_only_when_asked_for(self, world: World) -> None:
        agent = await self._deleted(world)
        mine = AgentFilter(project_id=world.project.id)
        everything = AgentFilter(project_id=world.project.id, include_deleted=True)
        assert await world.storage.list_agents(mine, Page()) == []
        assert await world.storage.count_agents(mine) == 0
        assert [one.id for one in await world.storage.list_agents(everything, Page())] == [agent.id]
        assert await world.storage.count_agents(everything) == 1

    # -- edited ------------------------------------------------------------------------------------------------------

    async def test_an_edit_changes_what_it_names(self, world: World) -> None:
        agent = await world.new_agent(labels={"a": "1"}, annotations={"b": "2"}, config={"c": 3})
        edit = AgentEdit(agent_id=agent.id, name="new", labels={}, config={"d": [1]}, task_summary="s")
        edited = await world.storage.edit_agent(edit)
        assert edited == await world.read_agent(agent.id)
        assert (edited.name, edited.labels, edited.annotations) == ("new", {}, {"b": "2"})
        assert (edited.config, edited.task_summary, edited.phase) == ({"d": [1]}, "s", agent.phase)
        assert edited.state_version == agent.state_version + 1

    async def test_an_edit_of_an_older_version_is_refused(self, world: World) -> None:
        agent = await world.new_agent()
        await world.storage.edit_agent(AgentEdit(agent_id=agent.id, state_version=agent.state_version, name="one"))
        with pytest.raises(VersionConflict):
            await world.storage.edit_agent(AgentEdit(agent_id=agent.id, state_version=agent.state_version, name="two"))
        assert (await world.read_agent(agent.id)).name == "one"

    async def test_of_edits_of_one_version_at_once_one_is_made(self, world: World) -> None:
        agent = await world.new_agent()
        outcomes = []

        async def edit(name: str) -> None:
            try:
                await world.storage.edit_agent(
                    AgentEdit(agent_id=agent.id, state_version=agent.state_version, name=name)
                )
                outcomes.append(name)
            except VersionConflict:
                pass

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(edit, str(number))
        assert outcomes == [(await world.read_agent(agent.id)).name]

    async def test_nothing_unknown_or_deleted_is_edited(self, world: World) -> None:
        deleted = await self._deleted(world)
        for agent_id in (deleted.id, AgentId(uuid()), *map(AgentId, MALFORMED)):
            with pytest.raises(NotFound):
                await world.storage.edit_agent(AgentEdit(agent_id=agent_id, name="new"))

    # -- lists -------------------------------------------------------------------------------------------------------

    async def test_agents_are_listed_by_project_broker_and_phase(self, world: World) -> None:
        one = await world.new_agent(Phase.STOPPED)
        two = await world.new_agent(Phase.RUNNING)
        other = await world.new_project()
        far = await world.new_agent(Phase.RUNNING, project_id=other.id)
        mine = AgentFilter(runtime_broker_id=world.broker.id)
        assert {agent.id for agent in await world.storage.list_agents(mine, Page())} == {one.id, two.id, far.id}
        here = AgentFilter(project_id=world.project.id, phase="running")
        assert [agent.id for agent in await world.storage.list_agents(here, Page())] == [two.id]
        assert await world.storage.count_agents(here) == 1
        named = AgentFilter(runtime_broker_id=world.broker.id, slug=far.slug)
        assert [agent.id for agent in await world.storage.list_agents(named, Page())] == [far.id]
        nobody = AgentFilter(project_id="nonsense")
        assert await world.storage.list_agents(nobody, Page()) == []


class ReportContract(StorageContract):
    """The rules of `kernel.agent`, through the row."""

    def _report(self, agent: Agent, **more: object) -> Report:
        values: dict[str, object] = {"agent_id": agent.id, "source": "agent", "run_id": agent.run_id}
        return Report(**{**values, **more})  # type: ignore[arg-type]

    async def _running(self, world: World, **more: object) -> Agent:
        return await world.new_agent(Phase.RUNNING, run_id=uuid(), **more)

    async def test_a_report_of_the_current_run_is_stored(self, world: World) -> None:
        agent = await self._running(world, detail={"kept": 1})
        outcome = await world.storage.report(self._report(agent, activity="working", detail={"toolName": "x"}))
        after = await world.read_agent(agent.id)
        assert (outcome.changed, outcome.run_unknown, outcome.agent) == (True, False, after)
        assert (after.activity, after.detail) == ("working", {"kept": 1, "toolName": "x"})
        assert after.state_version == agent.state_version + 1
        assert after.last_seen is not None

    async def test_a_report_that_changes_nothing_raises_no_version(self, world: World) -> None:
        agent = await self._running(world, activity="working")
        outcome = await world.storage.report(self._report(agent, activity="working", phase=Phase.RUNNING))
        assert not outcome.changed
        assert (await world.read_agent(agent.id)).state_version == agent.state_version

    async def test_a_report_of_another_run_changes_nothing_and_says_so(self, world: World) -> None:
        agent = await self._running(world)
        outcome = await world.storage.report(self._report(agent, run_id=uuid(), phase=Phase.ERROR))
        assert (outcome.changed, outcome.run_unknown) == (False, True)
        assert await world.read_agent(agent.id) == agent

    async def test_a_report_may_end_a_run(self, world: World) -> None:
        agent = await self._running(world, activity="working")
        outcome = await world.storage.report(self._report(agent, phase=Phase.ERROR, activity="crashed"))
        assert outcome.agent is not None
        assert (outcome.agent.phase, outcome.agent.activity) == (Phase.ERROR, "crashed")

    @pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.ERROR, Phase.SUSPENDED])
    async def test_no_report_leaves_a_resting_phase(self, world: World, phase: Phase) -> None:
        agent = await world.new_agent(phase, run_id=uuid())
        await world.storage.report(self._report(agent, phase=Phase.RUNNING))
        assert (await world.read_agent(agent.id)).phase is phase

    async def test_no_report_goes_back_from_running(self, world: World) -> None:
        agent = await self._running(world)
        await world.storage.report(self._report(agent, phase=Phase.STARTING))
        assert (await world.read_agent(agent.id)).phase is Phase.RUNNING

    async def test_a_broker_speaks_of_its_own_agents_only(self, world: World) -> None:
        agent = await self._running(world)
        outcome = await world.storage.report(self._report(agent, phase=Phase.ERROR, broker_id=uuid()))
        assert (outcome.agent, outcome.changed) == (None, False)
        mine = await world.storage.report(self._report(agent, phase=Phase.ERROR, broker_id=world.broker.id))
        assert mine.changed

    async def test_a_heartbeat_of_a_stock_broker_revives_only_in_quiet(self, world: World) -> None:
        agent = await world.new_agent(Phase.STOPPED)
        said = self._report(agent, source="heartbeat", run_id=None, phase=Phase.RUNNING, tells_runs=False)
        loud = self._report(agent, source="heartbeat", run_id=None, phase=Phase.RUNNING, tells_runs=False, quiet=False)
        assert not (await world.storage.report(loud)).changed
        assert (await world.storage.report(said)).changed
        assert (await world.read_agent(agent.id)).phase is Phase.RUNNING

    @pytest.mark.parametrize("ended", [True, False], ids=["ended", "in-flight"])
    async def test_a_heartbeat_that_takes_it_for_quiet_is_not_believed_over_an_end(
        self, world: World, ended: bool
    ) -> None:
        """It was quiet when that was asked, and is not any more when the heartbeat is stored."""
        agent = await self._running(world)
        intent = await world.claimed(Op.STOP, agent)
        if ended:
            await world.end(intent, change=AgentChange(phase=Phase.STOPPED))
        before = await world.read_agent(agent.id)
        other = Phase.RUNNING if ended else Phase.STOPPED
        said = self._report(agent, source="heartbeat", run_id=None, phase=other, tells_runs=False)
        assert not (await world.storage.report(said)).changed
        assert (await world.read_agent(agent.id)).phase is before.phase

    @pytest.mark.parametrize("agent_id", MALFORMED)
    async def test_a_report_about_nobody_finds_nobody(self, world: World, agent_id: str) -> None:
        outcome = await world.storage.report(Report(agent_id=AgentId(agent_id), source="agent"))
        assert (outcome.agent, outcome.changed) == (None, False)

    async def test_a_report_about_a_deleted_agent_finds_nobody(self, world: World) -> None:
        agent = await self._running(world)
        await world.end(await world.claimed(Op.DELETE, agent), change=AgentChange(removal="soft"))
        outcome = await world.storage.report(self._report(agent, activity="working"))
        assert outcome.agent is None

    async def test_reports_at_once_lose_no_detail(self, world: World) -> None:
        agent = await self._running(world)

        async def tell(number: int) -> None:
            await world.storage.report(self._report(agent, detail={f"n{number}": number}))

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(tell, number)
        assert (await world.read_agent(agent.id)).detail == {f"n{number}": number for number in range(12)}

    # -- quiet -------------------------------------------------------------------------------------------------------

    async def test_an_agent_without_intents_is_quiet(self, world: World) -> None:
        assert await world.storage.quiet((await world.new_agent()).id, 5.0)
        assert await world.storage.quiet(AgentId("nonsense"), 5.0)

    @pytest.mark.parametrize("op", [Op.STOP, Op.MESSAGE])
    async def test_an_agent_with_something_unfinished_is_not_quiet(self, world: World, op: Op) -> None:
        agent, other = await world.new_agent(), await world.new_agent()
        await world.record(op, agent)
        assert not await world.storage.quiet(agent.id, 0.0)
        assert await world.storage.quiet(other.id, 5.0)
        await world.claim()
        assert not await world.storage.quiet(agent.id, 0.0)

    async def test_an_agent_is_quiet_again_some_time_after_an_end(self, world: World) -> None:
        agent = await world.new_agent()
        await world.end(await world.claimed(Op.STOP, agent))
        assert not await world.storage.quiet(agent.id, 60.0)
        await anyio.sleep(0.05)
        assert await world.storage.quiet(agent.id, 0.01)
