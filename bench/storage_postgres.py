"""The PostgreSQL backend alone: what each operation that a cross-hub call goes through costs, one at a time and at 64
callers, beside one round trip that asks nothing and one durable commit of a bare row.

One process, two backends that share a database, as two hubs do: what one records and signals, the other claims and
ends. The server waits for its disk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import anyio

from bench.rig import cluster, pingpong, report, script
from bench.rig.backend import World
from kernel import SYSTEM, Agent, AgentChange, AgentId, ClaimRequest, End, Intent, NodeId, Op, Phase, Recording, State
from kernel.config import Settings
from plugins.storage.postgres.connecting import Target
from plugins.storage.postgres.opening import opened
from plugins.storage.postgres.storage import PostgresStorage

CALLERS = (1, 64)
STEPS = ("find the agent", "record", "claim", "end", "read the end")
"""One after the other, in this order, they are a call's way through the database, signals left out."""
OPS = frozenset(Op)
T = TypeVar("T")


class Calls:
    """A call's way through the database, step by step, with its times."""

    def __init__(self, entry: PostgresStorage, owner: World) -> None:
        self.entry = entry
        self.owner = owner
        self.times: dict[str, list[float]] = {step: [] for step in STEPS}

    async def _timed(self, step: str, asked: Awaitable[T]) -> T:
        before = time.perf_counter()
        answer = await asked
        self.times[step].append(time.perf_counter() - before)
        return answer

    async def one(self, agent: Agent) -> None:
        storage = self.owner.storage
        await self._timed("find the agent", self.entry.find_agent(agent.id))
        new = self.owner.intent(Op.START, agent)
        await self._timed("record", self.entry.record(Recording(intents=(new,))))
        asked = ClaimRequest(session=self.owner.session, limit=64, ops=OPS, ids=(new.id,), lazily=True)
        claims = await self._timed("claim", storage.claim(asked))
        (intent,) = claims.intents
        await self._timed("end", storage.end(self._end(intent)))
        await self._timed("read the end", self.entry.find_intents([new.id]))

    def _end(self, intent: Intent) -> End:
        return End(
            intent_id=intent.id,
            op=intent.op,
            state=State.DONE,
            session=self.owner.session,
            attempt=intent.attempts,
            reason="answered",
            result={"agent": {"phase": "running"}, "phase": "running"},
            agent_id=AgentId(intent.agent_id),
            change=AgentChange(phase=Phase.RUNNING),
            lazily=True,
        )


async def closed_loop(calls: Calls, callers: int, seconds: float) -> float:
    """One caller for each agent; calls a second."""
    until = time.perf_counter() + seconds
    done = 0

    async def caller(agent: Agent) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await calls.one(agent)
            done += 1

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for agent in calls.owner.agents[:callers]:
            tasks.start_soon(caller, agent)
    return done / (time.perf_counter() - started)


async def round_trip(dsn: str, seconds: float) -> float:
    """The median of a statement that asks nothing, in seconds."""
    connection = await pingpong.connected(dsn)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while (before := time.perf_counter()) < until:
        await connection.fetchval("SELECT 1")
        times.append(time.perf_counter() - before)
    connection.terminate()
    return report.median(times)


async def measure(chosen: argparse.Namespace, step: script.Step, _directory: Path) -> list[report.Table]:
    async with cluster.postgres() as server, AsyncExitStack() as stack:
        dsn = server.dsn(cluster.DATABASE)
        entry, owner = [await _backend(dsn, stack) for _ in range(2)]
        world = World(owner)
        await world.build(agents=max(CALLERS))
        step("floors")
        bare = await round_trip(dsn, chosen.seconds / 2)
        insert = report.median(await pingpong.inserted(dsn, chosen.seconds / 2))
        found, rates = {}, {}
        for callers in CALLERS:
            step(f"{callers} at once")
            calls = Calls(entry, world)
            await closed_loop(calls, callers, 1.0)
            calls = Calls(entry, world)
            rates[callers] = await closed_loop(calls, callers, chosen.seconds)
            found[callers] = {name: report.median(times) * 1000 for name, times in calls.times.items()}
    return [_steps(found, bare * 1000, insert * 1000), _rates(rates, found)]


async def _backend(dsn: str, stack: AsyncExitStack) -> PostgresStorage:
    storage = await opened(Target(dsn=dsn), Settings(), NodeId(SYSTEM.uuid4()))
    stack.push_async_callback(storage.close)
    return storage


def _steps(found: dict[int, dict[str, float]], bare: float, insert: float) -> report.Table:
    one, many = (found[callers] for callers in CALLERS)
    table = report.Table(
        "PostgreSQL alone: the operations on a call's way, p50",
        *("operation", "1 caller ms", "× SELECT 1", "64 callers ms"),
        note="SELECT 1 and the bare row: on a connection of their own, one at a time",
    )
    table.add("SELECT 1", bare, 1.0, "-")
    table.add("a bare row, durable", insert, insert / bare, "-")
    for name in STEPS:
        table.add(name, one[name], one[name] / bare, many[name])
    table.add("all five", sum(one.values()), sum(one.values()) / bare, sum(many.values()))
    return table


def _rates(rates: dict[int, float], found: dict[int, dict[str, float]]) -> report.Table:
    table = report.Table("calls' ways a second", "callers", "a second", "p50 ms of a way")
    for callers, rate in rates.items():
        table.add(callers, rate, sum(found[callers].values()))
    return table


if __name__ == "__main__":
    script.run(measure, script.arguments(__doc__, seconds=4.0).parse_args(), steps=1 + len(CALLERS))
