"""The database comes back with less than it had told: nothing acknowledged is lost, and nothing is sent twice (P1, P2,
P6).

Where commits are undone by hand, exactly those are that a crash could have undone; where the server really dies, its
log writer stands still, so that what did not wait for the disk is lost for certain.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from kernel.testing.postgres import Server
from tests.harness.brokerprocess import BrokerProcess
from tests.harness.cluster import Cluster
from tests.harness.fixtures import tasks
from tests.harness.hubclient import HubClient, Json
from tests.harness.hubprocess import HubProcess
from tests.harness.processes import eventually
from tests.harness.proxy import Proxy
from tests.harness.scenes import Background

__all__ = ["tasks"]
pytestmark = pytest.mark.anyio

UNHURRIED = {"wal_writer_delay": "10s", "bgwriter_delay": "10s", "autovacuum": "off"}
RARELY = {"sweep.stuck": "60s"}
"""What the rows tell is not looked at without a reason."""
UNCLAIM = (
    "state = 'pending', attempts = attempts - 1, claimed_by = null, claimed_session = null, claimed_epoch = null, "
    "ended_at = null, result = null, sent_at = null"
)
UNEND = "state = 'in_progress', ended_at = null, result = null"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(settings=UNHURRIED) as started:
        yield started


class Story:
    """Hub `holder` holds a broker; calls come through `far`, so that each has a row."""

    def __init__(self, server: Server, database: str, cluster: Cluster, broker: BrokerProcess, project: str) -> None:
        self.server = server
        self.database = database
        self.cluster = cluster
        self.broker = broker
        self.project = project

    @property
    def holder(self) -> HubProcess:
        return self.cluster.hubs[0]

    @property
    def far(self) -> HubClient:
        return self.cluster.hubs[1].api

    async def agent(self) -> str:
        made: Json = await self.far.create_agent(self.project, self.broker.broker_id)
        return str(made["id"])

    async def in_flight(self, tasks: anyio.abc.TaskGroup, agent: str, op: str = "stop") -> tuple[Background, str]:
        """A call whose request the broker has, and whose answer waits for the gate named as the agent."""
        await self.broker.rule(op=op, gate=agent, times=1)
        call, before = Background(), len(self.broker.history())
        tasks.start_soon(call.run, lambda: self.far.do(op, agent, prefer="wait=60"))
        asked = await self.broker.seen(what="effect", op=op, after=before)
        return call, str(asked["dispatch"])

    # -- what is in the database

    def undo(self, dispatch: str, what: str) -> None:
        """As if the last commits about it had been lost, and their steps with them."""
        self.server.sql(
            f"begin; update broker_dispatch set {what} where id = '{dispatch}';"
            f"delete from transitions where intent_id = '{dispatch}' and n > 2; commit",
            self.database,
        )

    def row(self, dispatch: str, columns: str = "state, attempts") -> list[str]:
        found = self.server.sql(f"select {columns} from broker_dispatch where id = '{dispatch}'", self.database)
        return found[0] if found else []

    def reasons(self, dispatch: str) -> list[str]:
        text = f"select reason from transitions where intent_id = '{dispatch}' order by n"
        return [reason for (reason,) in self.server.sql(text, self.database)]

    def break_connections(self) -> None:
        assert self.server.terminate("pointsman-%") > 0

    async def until(self, true: Callable[[], bool], what: str) -> None:
        async def asked() -> bool:
            return true()

        await eventually(asked, what, every=0.1)

    async def row_is(self, dispatch: str, *wanted: str) -> None:
        await self.until(lambda: self.row(dispatch) == list(wanted), f"{dispatch} {wanted}")

    # -- what must be true at the end

    def sent(self, dispatch: str) -> int:
        return len(self.broker.events(what="request", dispatch=dispatch))

    def took_effect_once(self, *dispatches: str) -> None:
        """And was sent once: no node drives again what it has in hand."""
        for dispatch in dispatches:
            seen = (len(self.broker.effects(dispatch=dispatch)), self.sent(dispatch))
            assert seen == (1, 1), f"{dispatch}: {self.reasons(dispatch)}"

    def kept_its_socket(self) -> None:
        assert self.broker.events(what="closed") == []
        for hub in self.cluster.hubs:
            assert "is lost" not in hub.log
            assert "was judged lost" not in hub.log


@asynccontextmanager
async def story(
    directory: Path,
    server: Server,
    database: str,
    dsn: str | list[str] | None = None,
    settings: dict[str, str] | None = None,
) -> AsyncIterator[Story]:
    async with AsyncExitStack() as stack:
        cluster = Cluster(directory, dsn or server.dsn(database), hubs=2, settings={**RARELY, **(settings or {})})
        await stack.enter_async_context(cluster)
        one, two = cluster.hubs
        broker = await stack.enter_async_context(cluster.broker(await two.api.register_broker(), first=one))
        await broker.seen(what="connected")
        await cluster.owner(broker.broker_id)
        yield Story(server, database, cluster, broker, await two.api.create_project())


@pytest.fixture
async def told(tmp_path: Path, server: Server) -> AsyncIterator[Story]:
    server.create_database(tmp_path.name)
    async with story(tmp_path, server, tmp_path.name) as made:
        yield made
    server.drop_database(tmp_path.name)


# -- claims -------------------------------------------------------------------------------------------------


async def test_an_undone_claim_is_taken_again_and_its_work_left_in_flight(
    told: Story, tasks: anyio.abc.TaskGroup
) -> None:
    agent = await told.agent()
    call, dispatch = await told.in_flight(tasks, agent)
    await told.until(lambda: told.row(dispatch, "sent_at is not null") == ["t"], "its row told that it was sent")
    told.server.sql(f"update runtime_brokers set paused = true where id = '{told.broker.broker_id}'", told.database)
    told.undo(dispatch, UNCLAIM)
    told.break_connections()
    await told.row_is(dispatch, "in_progress", "1")
    assert told.reasons(dispatch)[2:] == ["reclaimed"], "a claim takes nothing of a paused broker, and only heads"
    await told.until(lambda: told.row(dispatch, "sent_at is not null") == ["t"], "told again that it was sent")
    await told.broker.release(agent)
    (await call.answered()).expect(200)
    told.took_effect_once(dispatch)
    told.kept_its_socket()


async def test_an_answer_makes_an_undone_claim_good(told: Story, tasks: anyio.abc.TaskGroup) -> None:
    """Before anything else notices: the end finds the row pending, with fewer attempts than its own."""
    agent = await told.agent()
    call, dispatch = await told.in_flight(tasks, agent)
    told.server.sql(f"update runtime_brokers set paused = true where id = '{told.broker.broker_id}'", told.database)
    told.undo(dispatch, UNCLAIM)
    await told.broker.release(agent)
    (await call.answered()).expect(200)
    assert told.reasons(dispatch)[2:] == ["reclaimed", "answered"]
    told.took_effect_once(dispatch)


async def test_what_is_claimed_again_in_the_ordinary_way_is_not_sent_again(
    told: Story, tasks: anyio.abc.TaskGroup
) -> None:
    agent = await told.agent()
    call, dispatch = await told.in_flight(tasks, agent)
    told.undo(dispatch, UNCLAIM)
    await told.row_is(dispatch, "in_progress", "1")  # by the poll
    await anyio.sleep(1.0)
    assert told.reasons(dispatch)[2:] == ["claimed"]
    await told.broker.release(agent)
    (await call.answered()).expect(200)
    told.took_effect_once(dispatch)


async def test_a_claim_of_which_nobody_heard_is_given_back(told: Story, tasks: anyio.abc.TaskGroup) -> None:
    agent = await told.agent()
    call, first = await told.in_flight(tasks, agent)
    second = await _claimed_by_nobody(told, agent, first)
    told.break_connections()
    await told.until(lambda: "unheard" in told.reasons(second), "given back")
    assert told.row(first) == ["in_progress", "1"], "what is in hand stays there"
    await told.broker.release(agent)
    (await call.answered()).expect(200)
    await told.far.state_is(second, "done")
    told.took_effect_once(first, second)


async def test_a_claim_that_was_carried_out_late_is_found(tmp_path: Path, server: Server) -> None:
    """No connection breaks: a server that stood still goes on with what its client had given up."""
    server.create_database(tmp_path.name)
    async with (
        story(tmp_path, server, tmp_path.name, settings={"sweep.stuck": "1s"}) as told,
        anyio.create_task_group() as tasks,
    ):
        agent = await told.agent()
        call, first = await told.in_flight(tasks, agent)
        second = await _claimed_by_nobody(told, agent, first)
        await told.until(lambda: "unheard" in told.reasons(second), "given back")
        await told.broker.release(agent)
        (await call.answered()).expect(200)
        await told.far.state_is(second, "done")
        told.took_effect_once(first, second)


async def _claimed_by_nobody(told: Story, agent: str, first: str) -> str:
    """Recorded behind `first`, and by its row in the hands that have `first` in hand."""
    second = (await told.far.do("restart", agent, prefer="respond-async")).expect(202).dispatch
    told.server.sql(
        "update broker_dispatch later set state = 'in_progress', attempts = 1, claimed_by = former.claimed_by, "
        "claimed_session = former.claimed_session, claimed_epoch = former.claimed_epoch, claimed_at = now() "
        f"from broker_dispatch former where later.id = '{second}' and former.id = '{first}'",
        told.database,
    )
    return second


async def test_a_claim_whose_answer_is_lost_is_made_good_at_once(tmp_path: Path, server: Server) -> None:
    database = tmp_path.name
    server.create_database(database)
    patient = {"node.lost_after": "20s", "node.beat": "5s", "bus.probe": "20s"}
    with Proxy(server.port) as way:
        dsn = [server.dsn(database, port=way.port), server.dsn(database)]
        async with story(tmp_path, server, database, dsn, patient) as told:
            agent = await told.agent()
            way.delay(1.0)
            call = (await told.far.do("restart", agent, prefer="respond-async")).expect(202)
            await told.row_is(call.dispatch, "in_progress", "1")
            way.cut()  # its answer is still on the way
            way.heal()
            await told.far.state_is(call.dispatch, "done")
            assert told.reasons(call.dispatch)[2:] == ["claimed", "unheard", "claimed", "answered"]
            told.took_effect_once(call.dispatch)


# -- ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("undone", [UNEND, UNCLAIM], ids=["end", "end and claim"])
async def test_an_undone_end_is_written_again(told: Story, undone: str) -> None:
    agent = await told.agent()
    answer = (await told.far.do("stop", agent)).expect(200)
    told.undo(answer.dispatch, undone)
    told.break_connections()
    row = await told.far.state_is(answer.dispatch, "done")
    assert (row["attempts"], row["result"] is not None) == (1, True)
    assert (await told.far.agent(agent))["phase"] == "stopped"
    told.took_effect_once(answer.dispatch)
    told.kept_its_socket()


async def test_what_ended_and_is_claimed_again_is_not_sent_again(told: Story) -> None:
    """Nothing broke, as behind a pooler: the claim itself tells what was undone."""
    agent = await told.agent()
    answer = (await told.far.do("stop", agent)).expect(200)
    told.undo(answer.dispatch, UNCLAIM)
    await told.far.state_is(answer.dispatch, "done")
    told.took_effect_once(answer.dispatch)


async def test_the_end_of_a_local_call_comes_back_with_its_row(told: Story) -> None:
    agent = await told.agent()
    answer = (await told.holder.api.do("stop", agent)).expect(200)
    told.server.sql(
        f"delete from broker_dispatch where id = '{answer.dispatch}';"
        f"delete from transitions where intent_id = '{answer.dispatch}'; delete from eras",
        told.database,
    )
    await told.until(lambda: told.row(answer.dispatch) == ["done", "1"], "its row")
    told.took_effect_once(answer.dispatch)
    assert "the database crashed, or another took its place" in told.holder.log


# -- the server dies ----------------------------------------------------------------------------------------


def stop_writing(server: Server) -> None:
    """Everything until now is on the disk; what does not wait for the disk from now on never gets there."""
    server.sql("checkpoint")
    pids = server.sql("select pid from pg_stat_activity where backend_type in ('walwriter', 'background writer')")
    for (pid,) in pids:
        os.kill(int(pid), signal.SIGSTOP)


async def test_a_crash_undoes_claims_and_ends_and_nobody_notices(tmp_path: Path, server: Server) -> None:
    database = tmp_path.name
    server.create_database(database)
    server.sql(f'alter database "{database}" set synchronous_commit = off')
    async with story(tmp_path, server, database) as told, anyio.create_task_group() as tasks:
        agent = await told.agent()
        first, one = await told.in_flight(tasks, agent)
        await told.broker.rule(op="restart", gate="later")
        second = Background()
        tasks.start_soon(second.run, lambda: told.far.do("restart", agent, prefer="wait=60"))
        await told.until(lambda: len(_unfinished(told)) == 2, "both are recorded")
        stop_writing(server)
        await told.broker.release(agent)
        (await first.answered()).expect(200)
        two = str((await told.broker.seen(what="effect", op="restart"))["dispatch"])
        server.kill()
        server.start()
        await told.row_is(one, "done", "1")
        await told.row_is(two, "in_progress", "1")
        assert told.reasons(two)[2:] == ["reclaimed"], "the crash undid its claim"
        assert "1 ends written again" in told.holder.log
        await told.broker.release("later")
        (await second.answered()).expect(200)
        told.took_effect_once(one, two)
        told.kept_its_socket()


def _unfinished(told: Story) -> list[list[str]]:
    return told.server.sql("select id from broker_dispatch where ended_at is null", told.database)


@pytest.mark.parametrize("how", ["fast", "immediate", "frozen"])
async def test_calls_in_flight_outlive_the_databases_absence(told: Story, tasks: anyio.abc.TaskGroup, how: str) -> None:
    """Answered while it is away, and after it came back."""
    server = told.server
    agents = [await told.agent() for _ in range(2)]
    calls = [await told.in_flight(tasks, agent) for agent in agents]
    if how == "frozen":
        server.freeze()
    else:
        server.stop("fast" if how == "fast" else "immediate")
    await told.broker.release(agents[0])
    await anyio.sleep(3.0)  # longer than node.lost_after
    if how == "frozen":
        server.thaw()
    else:
        server.start()
    await told.broker.release(agents[1])
    for call, dispatch in calls:
        answer = await call.answered()
        assert answer.status == 200 or (answer.code == "outcome_unrecorded" and answer.dispatch == dispatch)
        await told.far.state_is(dispatch, "done")
    told.took_effect_once(*(dispatch for _, dispatch in calls))
    told.kept_its_socket()


async def test_what_a_crash_may_have_undone_is_told_as_unknown(told: Story) -> None:
    """Nobody claimed it, as far as the row tells: only of what is younger than the crash that is all there is."""
    agent = await told.agent()
    await told.broker.disconnect()
    await told.far.broker_is(told.broker.broker_id, "offline")
    older = (await told.far.do("stop", agent, prefer="deliver=hold")).expect(202).dispatch
    told.server.restart("immediate")
    await told.until(lambda: told.server.sql("select 1 from eras", told.database) != [], "the next era")

    async def recorded() -> str | None:
        answer = await told.far.do("stop", agent, prefer="deliver=hold")
        return answer.dispatch if answer.status == 202 else None

    newer = await eventually(recorded, "a hub that records again")
    for dispatch, code in ((older, "outcome_unknown"), (newer, "cancelled")):

        async def cancelled(dispatch: str = dispatch) -> bool:
            return (await told.far.cancel(dispatch)).status == 200  # 503 while the hub judges nobody

        await eventually(cancelled, "a cancel that is heard")
        assert (await told.far.dispatch(dispatch))["error"]["code"] == code


# -- another server takes its place --------------------------------------------------------------------------


async def test_a_standby_that_missed_the_last_commits_takes_over(tmp_path: Path) -> None:
    with Server() as primary, primary.standby() as standby:
        primary.create_database("hubs")
        dsn = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/hubs"
        async with (
            story(tmp_path, primary, "hubs", dsn) as told,
            _late(told) as late,
            anyio.create_task_group() as tasks,
        ):
            agents = [await told.agent() for _ in range(4)]
            known, a = await told.in_flight(tasks, agents[0])
            standby.catch_up()
            standby.detach()
            missed, b = await told.in_flight(tasks, agents[1], op="restart")
            ended = [
                (await hub.do("stop", agent)).expect(200).dispatch
                for hub, agent in ((told.far, agents[2]), (told.holder.api, agents[3]))
            ]
            await late.connect()
            lost = await late.seen(what="connected")
            await told.cluster.owner(late.broker_id)
            primary.kill()
            standby.promote()
            told.server = standby
            for dispatch in ended:
                await told.row_is(dispatch, "done", "1")
            for agent in agents[:2]:
                await told.broker.release(agent)
            for call in (known, missed):
                (await call.answered()).expect(200)
            for dispatch in (a, b):
                await told.row_is(dispatch, "done", "1")
            told.took_effect_once(a, b, *ended)
            told.kept_its_socket()
            again = await late.seen(what="connected", times=2)
            assert again["epoch"] > lost["epoch"], "a session that was lost is dialled anew, beyond its epoch"
            assert (await told.cluster.owner(late.broker_id)).alive


@asynccontextmanager
async def _late(told: Story) -> AsyncIterator[BrokerProcess]:
    """A broker that is known and has not dialled yet."""
    identity = await told.far.register_broker()
    async with told.cluster.broker(identity, first=told.holder, name="late", auto=False) as broker:
        yield broker
