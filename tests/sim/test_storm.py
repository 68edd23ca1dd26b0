"""Several kernels on one database, with faults at every await: late answers, lost ones, killed hubs, brokers that move.

What the storms of processes (tests/chaos) meet once in an hour, these meet in seconds: each question to the database
may be answered late, by nobody, or only after it was done.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from kernel.agent import Agent, AgentId, Phase
from kernel.broker import BrokerId
from kernel.clock import SYSTEM
from kernel.config import Settings
from kernel.intent import Intent
from kernel.project import Project
from kernel.storage import BrokerRegistration, IntentFilter, Page, Recording
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage
from tests.sim.broker import WINDOW, Broker
from tests.sim.calls import Asked, Caller
from tests.sim.faults import Odds
from tests.sim.hubs import World
from tests.sim.promises import broken, left_over

pytestmark = pytest.mark.anyio
SECONDS = 6.0
HUBS, CALLERS, BROKERS, AGENTS = 3, 20, 2, 3
"""Agents are those of each broker."""


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """What a storm is made of. `turns`: what happens to hubs, one after the other, by chance."""

    odds: Odds = Odds()
    turns: tuple[str, ...] = ("kill", "stop", "nothing")
    restlessness: float = 1.0


STORMS = {
    "of everything": Weather(),
    "of lost answers": Weather(odds=Odds(away=0.05, lost=0.08), turns=("nothing",)),
    "of kills": Weather(turns=("kill", "kill", "nothing")),
    "of stops, with answers that come late": Weather(odds=Odds(held=0.05), turns=("stop",), restlessness=0.3),
    "of brokers that move": Weather(turns=("nothing",), restlessness=5.0),
}


def short() -> Settings:
    """A second is long."""
    usual, change = Settings(), msgspec.structs.replace
    deadlines = {"deadline": 6.0, "message_ttl": 6.0, "now_ttl": 2.0}
    waits = {"http_wait": 2.0, "rolling_window": 3.0, "window": WINDOW, "reconnect_grace": 1.0}
    beats = {"beat": 0.2, "lost_after": 1.6, "grace": 0.5, "drain": 2.0}
    channel = {"ping": 0.3, "dead_after": 1.5, "renew": 0.4, "stale_after": 2.5, "send_deadline": 1.0, "handshake": 2.0}
    return change(
        usual,
        dispatch=change(usual.dispatch, **deadlines, **waits),
        node=change(usual.node, **beats),
        bus=change(usual.bus, poll_healthy=0.4),
        channel=change(usual.channel, **channel),
        sweep=change(usual.sweep, nodes=0.3, stuck=0.5, messages=1.0),
    )


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[SqliteStorage]:
    options = Options(path=str(tmp_path / "hub.db"), synchronous="NORMAL", lost_after=1.6, stale_after=2.5)
    made = SqliteStorage(await opened(options))
    yield made
    await made.close()


async def some_agents(storage: SqliteStorage) -> list[Agent]:
    """Of some brokers, in one project; they run."""
    project = Project(id=SYSTEM.uuid7(), name="p", slug="p")
    await storage.create_project(project, None)
    agents = []
    for n in range(BROKERS):
        broker_id = BrokerId(SYSTEM.uuid7())
        token: dict[str, Any] = {"token_id": SYSTEM.uuid7(), "token_hash": SYSTEM.uuid7(), "token_lives": 60.0}
        name: dict[str, Any] = {"name": f"b{n}", "slug": f"b{n}", "created_by": "user:sim"}
        await storage.register_broker(BrokerRegistration(broker_id=broker_id, **name, **token))
        for m in range(AGENTS):
            told: dict[str, Any] = {"slug": f"a{n}{m}", "name": f"a{n}{m}", "phase": Phase.RUNNING}
            agent = Agent(id=AgentId(SYSTEM.uuid7()), project_id=project.id, runtime_broker_id=broker_id, **told)
            await storage.record(Recording(agent=agent))
            agents.append(agent)
    return agents


async def storm(world: World, weather: Weather, tasks: anyio.abc.TaskGroup) -> None:
    """Things happen to hubs; two serve at any time."""
    until = SYSTEM.monotonic() + SECONDS
    while SYSTEM.monotonic() < until:
        await anyio.sleep(0.5 + world.chance.random() * 2.0)
        serving = [hub for hub in world.hubs if hub.takes]
        turn = world.chance.choice(weather.turns)
        if turn != "nothing" and serving:
            hub = world.chance.choice(serving)
            (hub.kill if turn == "kill" else hub.stop)()
        while len([hub for hub in world.hubs if hub.takes]) < 2:
            await world.start(tasks)


async def all_ended(storage: SqliteStorage) -> list[Intent]:
    """The rows, once all have ended; or as they are when that takes too long."""
    rows: list[Intent] = []
    with anyio.move_on_after(30.0):
        while not rows or any(row.unfinished for row in rows):
            await anyio.sleep(0.2)
            rows = await storage.list_intents(IntentFilter(), Page(limit=100_000))
    return rows


@pytest.mark.parametrize("name", STORMS)
async def test_promises_are_kept_in_a_storm(storage: SqliteStorage, name: str) -> None:
    weather, seed = STORMS[name], random.randrange(1_000_000)
    world = World(storage, short(), weather.odds, random.Random(seed))
    agents, asked = await some_agents(storage), list[Asked]()
    brokers = [Broker(world, one, weather.restlessness) for one in {agent.runtime_broker_id or "" for agent in agents}]
    async with anyio.create_task_group() as tasks:
        for _ in range(HUBS):
            await world.start(tasks)
        for broker in brokers:
            tasks.start_soon(broker.run, tasks)
        for n in range(CALLERS):
            tasks.start_soon(Caller(world, agents, seed + n, asked).run)
        await storm(world, weather, tasks)
        world.end_faults()
        rows = await all_ended(storage)
        await anyio.sleep(3.5)  # the longest that anybody waits
        left = [one for hub in world.hubs for one in left_over(hub)]
        for hub in tuple(world.hubs):
            hub.kill()
        tasks.cancel_scope.cancel()
    assert not world.faults
    assert not left
    effects = [effect for broker in brokers for effect in broker.effects]
    assert not broken(asked, rows, effects), f"seed {seed}"
    assert len(effects) > 20, "it was no storm"
