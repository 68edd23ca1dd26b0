"""A hub told to stop finishes or hands back all it holds, and tells its brokers when to come back (P9)."""

from __future__ import annotations

import base64
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest

from tests.harness.processes import eventually
from tests.harness.raw import upgrade
from tests.harness.scenes import Background, Scene
from tests.harness.signing import signed
from tests.harness.sockets import CONNECT_PATH

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.brokerprocess import BrokerProcess
    from tests.harness.hubclient import Json

pytestmark = pytest.mark.anyio


class Busy:
    """A stock broker that works at one stop: as long as it does, the hub that stops waits for its answer."""

    def __init__(self, scene: Scene, broker: BrokerProcess, agent: Json, call: Background) -> None:
        self.scene = scene
        self.broker = broker
        self.agent = agent
        self.call = call

    async def release(self) -> None:
        await self.broker.release("slow")


@pytest.fixture
async def busy(alone: Scene, tasks: TaskGroup) -> AsyncIterator[Busy]:
    async with await alone.other_broker("stock", personality="stock") as broker:
        await alone.api.broker_is(broker.broker_id, "online")
        agent = await alone.api.create_agent(alone.project, broker.broker_id)
        await broker.rule(op="stop", gate="slow", times=1)
        call = Background()
        tasks.start_soon(call.run, lambda: alone.api.do("stop", agent["id"], prefer="wait=60"))
        await broker.seen(what="request", op="stop")
        yield Busy(alone, broker, agent, call)


async def draining(scene: Scene, number: signal.Signals = signal.SIGTERM) -> None:
    """The hub was told to stop, and says so."""
    assert scene.hub.child
    scene.hub.child.send(number)

    async def told() -> bool:
        return (await scene.api.ask("GET", "/readyz")).status == 503

    await eventually(told, "a hub that is not ready any more")


async def gone(scene: Scene, patience: float = 30.0) -> None:
    assert scene.hub.child
    assert await scene.hub.child.ended(patience) == 0


# -- what a stopping hub says to whom ------------------------------------------------------------------------------


async def test_a_stopping_hub_takes_nothing_new_and_says_when_to_try_again(busy: Busy) -> None:
    scene = busy.scene
    await draining(scene)
    secret = base64.b64decode(scene.broker.settings["secret"])
    refused = await upgrade(scene.hub.url, signed(scene.broker_id, secret, "GET", CONNECT_PATH))
    answers = [
        await scene.api.ask("GET", "/readyz"),
        await scene.api.message(busy.agent["id"], "too late"),
        await scene.api.do("start", busy.agent["id"]),
    ]
    told = [(one.status, one.code, one.headers) for one in answers]
    for status, code, headers in [(refused.status, refused.code, refused.headers), *told]:
        assert (status, code) == (503, "draining")
        assert int(headers["retry-after"]) > 0
    (await scene.api.ask("GET", "/hub")).expect(200)
    await busy.release()
    await gone(scene)


async def test_brokers_are_told_when_to_come_back_and_are_closed_at_once_when_no_other_hub_is_there(
    alone: Scene,
) -> None:
    async with await alone.other_broker("second") as second:
        await alone.api.broker_is(second.broker_id, "online")
        assert await alone.hub.terminate() == 0
        for broker in (alone.broker, second):
            closed = await broker.seen(what="closed", socket=1)
            assert (closed["code"], closed["reason"]) == (4503, "draining")
        advice = sorted(
            (event["frame"]["afterMs"], event["frame"].get("deadlineMs"))
            for broker in (alone.broker, second)
            for event in broker.events(what="in", frame=lambda frame: frame["type"] == "reconnect")
        )
        assert len(advice) == 2
        assert 0 < advice[0][0] < advice[1][0] < 30_000, "not before a hub can be there, and not all at once"
        assert {deadline for _, deadline in advice} == {0}


async def test_a_stock_broker_is_sent_nothing_new_and_its_answer_is_waited_for(busy: Busy) -> None:
    """Its caller, too, hears how it ended."""
    scene = busy.scene
    behind = (await scene.api.do("start", busy.agent["id"], prefer="respond-async")).expect(202)
    await draining(scene)
    await anyio.sleep(1)
    assert busy.broker.events(what="closed") == []
    await busy.release()
    stopped = (await busy.call.answered()).expect(200)
    assert stopped.json["phase"] == "stopped"
    await gone(scene)
    closed = await busy.broker.seen(what="closed")
    assert (closed["code"], closed["reason"]) == (4503, "draining")
    assert busy.broker.events(what="in", frame=lambda frame: frame["type"] == "reconnect") == []
    assert busy.broker.events(what="request", op="start") == []
    await scene.back()
    assert (await scene.api.ended(stopped.dispatch))["state"] == "done"
    assert (await scene.api.ended(behind.dispatch))["state"] == "done"
    assert len(busy.broker.effects(op="stop")) == 1


async def test_a_stock_broker_that_does_not_answer_is_closed_when_the_drain_is_over(busy: Busy) -> None:
    """Ctrl-C: who sits at a terminal waits less than a deployment does."""
    scene = busy.scene
    assert scene.hub.child
    began = time.monotonic()
    scene.hub.child.send(signal.SIGINT)
    await gone(scene)
    assert time.monotonic() - began < 12
    told = (await busy.call.answered()).expect(202)
    await busy.release()
    await scene.back()
    row = await scene.api.ended(told.dispatch)
    assert (row["state"], row["attempts"]) == ("done", 2)


# -- nothing is lost ---------------------------------------------------------------------------------------------


async def test_a_local_call_in_flight_is_recorded_and_its_caller_told_where_to_look(
    alone: Scene, tasks: TaskGroup
) -> None:
    agent = await alone.agent()
    call, _ = await alone.held_up(tasks, "stop", agent, prefer="wait=30")
    assert await alone.hub.terminate() == 0
    told = (await call.answered()).expect(202)
    assert told.headers["location"].endswith(told.dispatch)
    await alone.back()
    await alone.broker.seen(what="joined", dispatch=told.dispatch)
    await alone.broker.release("slow")
    assert (await alone.api.ended(told.dispatch))["state"] == "done"
    assert len(alone.broker.effects(op="stop")) == 1
    await alone.check()


async def test_a_restart_under_load_loses_nothing(alone: Scene, tasks: TaskGroup) -> None:
    """Callers repeat what was not acknowledged, with the same key; the hub is stopped and started twice meanwhile."""
    agents = [await alone.agent() for _ in range(4)]
    stopped = anyio.Event()
    told: list[str] = []

    async def insist(agent: str, n: int) -> None:
        """A message, and every third time a restart, until the hub takes it."""
        while True:
            key = f"{agent}-{n}"
            try:
                if n % 3:
                    answer = await alone.api.message(agent, f"m{n}", idempotency_key=key)
                else:
                    answer = await alone.api.do("restart", agent, idempotency_key=key, prefer="wait=30")
            except (httpx2.HTTPError, RuntimeError):
                await anyio.sleep(0.05)
                continue
            if answer.status < 300:
                told.append(answer.dispatch)
                return
            assert answer.status == 503, answer
            await anyio.sleep(0.05)

    async def tell(agent: str) -> None:
        n = 0
        while not stopped.is_set():
            n += 1
            await insist(agent, n)
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as callers:
        for agent in agents:
            callers.start_soon(tell, agent["id"])
        for _ in range(2):
            await anyio.sleep(1.5)
            assert await alone.hub.terminate() == 0
            await alone.back()
        await anyio.sleep(0.5)
        stopped.set()
    assert len(set(told)) == len(told) > 20
    for dispatch in told:
        assert (await alone.api.ended(dispatch))["state"] == "done"
    await alone.check()


# -- its row -----------------------------------------------------------------------------------------------------


def beats(scene: Scene) -> list[int]:
    with sqlite3.connect(f"file:{scene.hub.directory / 'hub.db'}?mode=ro", uri=True) as connection:
        found = [at for (at,) in connection.execute("SELECT beat_at FROM hub_nodes WHERE lost_at IS NULL")]
    connection.close()
    return found


async def test_the_beat_goes_on_while_the_hub_drains_and_its_row_is_gone_at_the_end(busy: Busy) -> None:
    scene = busy.scene
    await draining(scene)
    [before] = beats(scene)

    async def later() -> bool:
        return beats(scene) > [before]

    await eventually(later, "a further beat")
    [row] = (await scene.api.get("/nodes"))["nodes"]
    assert row["draining"]
    await busy.release()
    await gone(scene)
    assert beats(scene) == []


async def test_the_only_hub_is_not_drained(alone: Scene) -> None:
    [row] = (await alone.api.get("/nodes"))["nodes"]
    assert (row["id"], row["brokers"], row["draining"]) == (alone.hub.ready["nodeId"], 1, False)
    assert 0 <= row["silentSeconds"] < 30
    answer = await alone.api.ask("POST", f"/nodes/{row['id']}/drain")
    assert answer.expect(409).code == "invalid_state"
    assert (await alone.api.ask("POST", "/nodes/nobody/drain")).expect(404).code == "not_found"
    (await alone.api.ask("GET", "/readyz")).expect(200)
