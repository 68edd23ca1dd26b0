"""The world that is broken: a PostgreSQL, hubs, brokers, and between all of them ways that can be cut."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from kernel.testing.postgres import Server
from tests.chaos.brokers import BACKOFF, Broker, Own, Scripted
from tests.chaos.ways import Way
from tests.harness.checker import Run, check
from tests.harness.cluster import Cluster
from tests.harness.history import Event
from tests.harness.hubclient import ENDED, Json
from tests.harness.hubprocess import HubProcess
from tests.harness.pooler import Pooler
from tests.harness.processes import PATIENCE, eventually
from tests.harness.proxy import Proxy
from tests.harness.wiretap import Wiretap

PATIENT = {"Prefer": "wait=30"}
CALM = 90.0
"""Seconds in which a healed world must have come to rest."""
STEPS = (
    "select row_to_json(t) from (select intent_id, n, from_state, to_state, reason, node_id, epoch, attempt"
    " from transitions order by intent_id, n) t"
)


class World:
    """What a fault may touch. `ways[n]` leads hub n to the database, `doors[n]` leads brokers to hub n."""

    def __init__(self, server: Server, database: str, cluster: Cluster, ways: Sequence[Way], chance: random.Random):
        self.server = server
        self.database = database
        self.cluster = cluster
        self.ways = ways
        self.chance = chance
        self.doors: list[Proxy] = []
        self.wiretap: Wiretap
        self.brokers: list[Broker] = []
        self.agents: dict[str, Broker] = {}
        self.project = ""
        self.crashed = False
        self.forgotten: tuple[float, float] | None = None

    @property
    def hubs(self) -> list[HubProcess]:
        return self.cluster.hubs

    @property
    def scripted(self) -> list[Scripted]:
        return [broker for broker in self.brokers if isinstance(broker, Scripted)]

    def any_broker(self) -> Broker:
        return self.chance.choice(self.brokers)

    async def owner(self, broker: Broker | None = None) -> HubProcess:
        """Our own broker may pause for half a minute when it lost one session after the other."""
        asked = broker or self.brokers[0]
        return await self.cluster.owner(asked.broker_id, BACKOFF if isinstance(asked, Own) else PATIENCE)

    def door_of(self, hub: HubProcess) -> Proxy:
        return self.doors[self.hubs.index(hub)]

    def way_of(self, hub: HubProcess) -> Way:
        return self.ways[self.hubs.index(hub)]

    def record(self, what: str, **more: Any) -> None:
        self.cluster.history.write(what, **more)

    async def restart(self, *hubs: HubProcess) -> None:
        """Those of them that are not there any more, at once."""
        async with anyio.create_task_group() as tasks:
            for hub in hubs or self.hubs:
                if not hub.alive:
                    tasks.start_soon(hub.restart)

    # -- the end

    async def calm(self) -> None:
        """Everything is there and whole again, every broker online; each agent runs, so that its messages flow."""
        for way in self.ways:
            way.heal()
        for door in self.doors:
            door.heal()
        for hub in self.hubs:
            if hub.child:
                hub.child.thaw()
        await self.restart()
        for broker in self.brokers:
            await self.owner(broker)
        async with anyio.create_task_group() as tasks:
            for agent in self.agents:
                tasks.start_soon(self._started, agent)
        await eventually(self._nothing_unfinished, "all intents ended", patience=CALM, every=0.25)

    async def _started(self, agent: str) -> None:
        async def started() -> bool:
            hub = self.cluster.any(self.chance)
            answer = await hub.api.do("start", agent, idempotency_key=str(uuid.uuid4()), prefer="deliver=hold, wait=20")
            return answer.status == 200

        await eventually(started, f"agent {agent} started", patience=CALM)

    async def _nothing_unfinished(self) -> bool:
        return ENDED.issuperset(str(row["state"]) for row in await self.rows())

    async def rows(self) -> list[Json]:
        return await self.hubs[0].api.all_dispatches()

    async def check(self) -> list[Run]:
        """All promises were kept to every broker. Raises: AssertionError naming those that were not."""
        await self.calm()
        rows, calls = await self.rows(), self.cluster.calls()
        steps = [json.loads(text) for (text,) in self.server.sql(STEPS, self.database)]
        for name, told in (("rows", rows), ("steps", steps)):  # beside the calls, for who looks into a failure
            (self.cluster.directory / f"{name}.json").write_text(json.dumps(told))
        runs = [self._run(broker, rows, calls, steps) for broker in {b.broker_id: b for b in self.brokers}.values()]
        for run in runs:
            check(run)
        return runs

    def _run(self, broker: Broker, rows: list[Json], calls: list[Event], steps: list[Json]) -> Run:
        """One broker's part: its rows, and the calls about them, about its agents, or about nothing that is known."""
        mine = [row for row in rows if row["brokerId"] == broker.broker_id]
        ids, others = {row["id"] for row in mine}, {row["id"] for row in rows}
        others -= ids
        elsewhere = {event["call"] for event in calls if event.get("dispatch") in others}
        return Run(
            calls=[event for event in calls if event.get("call") not in elsewhere and _about(event, broker)],
            broker=sorted(
                (event for one in self.brokers if one.broker_id == broker.broker_id for event in one.history()),
                key=lambda event: float(event["t"]),
            ),
            rows=mine,
            steps=[step for step in steps if step["intent_id"] in ids],
            dedupes=broker.dedupes,
            sweep=10.0,
            crashed=self.crashed,
            forgotten=self.forgotten,
        )


def _about(event: Event, broker: Broker) -> bool:
    return event["what"] != "broker_status" or bool(event["broker"] == broker.broker_id)


@asynccontextmanager
async def world(
    directory: Path,
    server: Server,
    *,
    seed: int = 0,
    hubs: int = 3,
    brokers: int = 2,
    agents: int = 3,
    own: int = 0,
    linger: float = 0.0,
    pooled: bool = False,
    standby: Server | None = None,
    clocks: Sequence[int] = (),
    settings: dict[str, str] | None = None,
    **scripted: Any,
) -> AsyncIterator[World]:
    """Hubs, brokers spread over them, and `agents` running agents on each. `scripted` is for the brokers.

    The first `own` brokers are our own program, whose agents may `linger` so many seconds when they end.
    `pooled` hubs reach the server through a pooler, but for LISTEN.
    With a `standby` the hubs are given both servers, and no ways that can be cut. `clocks` are off by so many seconds.
    """
    database = f"chaos_{uuid.uuid4().hex[:10]}"
    server.create_database(database)
    async with AsyncExitStack() as stack:
        stack.callback(_dropped, server, database)
        pooler = stack.enter_context(Pooler(server.port)) if pooled else None
        ways = [] if standby else [stack.enter_context(Way(server, pooler).open()) for _ in range(hubs)]
        both = f"postgresql://postgres@127.0.0.1:{server.port},127.0.0.1:{(standby or server).port}/{database}"
        dsns = [way.dsns(database) for way in ways] or [(both, None)]
        listen = [listening for _, listening in dsns if listening]
        cluster = Cluster(directory, [dsn for dsn, _ in dsns], listen_dsn=listen or None, hubs=hubs, settings=settings)
        for hub, seconds in zip(cluster, clocks, strict=False):
            hub.clock_off_by = seconds
        await stack.enter_async_context(cluster)
        made = World(server, database, cluster, ways, random.Random(seed))
        made.wiretap = Wiretap(directory / "wire.jsonl")
        stack.callback(made.wiretap.close)
        heard = made.wiretap.line if own else None
        made.doors = [stack.enter_context(Proxy(hub.port, witness=heard)) for hub in cluster]
        made.project = await cluster.hubs[0].api.create_project()
        for n in range(brokers):
            identity = await cluster.hubs[0].api.register_broker()
            name, urls = f"broker-{n}", [door.url for door in (*made.doors[n % hubs :], *made.doors[: n % hubs])]
            broker: Broker
            if n < own:
                broker = Own(directory / name, identity, urls, wiretap=made.wiretap, linger=linger)
            else:
                broker = cluster.broker(identity, name=name, urls=urls, kind=Scripted, **scripted)
            made.brokers.append(await stack.enter_async_context(broker))
        await _employ(made, agents)
        yield made


def _dropped(server: Server, database: str) -> None:
    if server.alive:
        server.drop_database(database)


async def _employ(made: World, agents: int) -> None:
    for broker in made.brokers:
        await made.owner(broker)
        for _ in range(agents):
            hub = made.cluster.any(made.chance)
            agent = await hub.api.create_agent(made.project, broker.broker_id, headers=PATIENT, **broker.agent())
            made.agents[agent["id"]] = broker
