"""The SQLite backend alone: durable records at 1, 16 and 64 callers beside bare inserts and commits on the same disk,
then claims and ends, and what one call costs as history and backlog grow."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
import sqlalchemy as sa

from bench.rig import report, script
from bench.rig.backend import World
from bench.rig.commits import TEXT, commit_time
from kernel import SYSTEM, ClaimRequest, Op, Recording
from plugins.storage.schema import messages
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage

CALLERS = (1, 16, 64)
Timed = Callable[[], Awaitable[object]]


async def rate(call: Callable[[int], Awaitable[object]], callers: int, seconds: float) -> tuple[float, float]:
    """Calls a second, and the median of one in milliseconds."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        while (before := time.perf_counter()) < until:
            await call(number)
            times.append(time.perf_counter() - before)

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(callers):
            tasks.start_soon(caller, number)
    return len(times) / (time.perf_counter() - started), statistics.median(times) * 1000


async def spent(call: Timed, rounds: int = 20) -> float:
    """The median of one call in milliseconds."""
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        await call()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1000


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    storage = SqliteStorage(await opened(Options(path=f"{directory}/hub.db", deadline=600.0)))
    try:
        world = World(storage)
        await world.build(agents=64)
        step("records")
        tables = [await records(world, chosen.seconds, directory)]
        step("claims and ends")
        tables.append(await lives(world, chosen.seconds))
        step("growth")
        return [*tables, await growth(world, chosen)]
    finally:
        await storage.close()


async def records(world: World, seconds: float, directory: Path) -> report.Table:
    table = report.Table(
        "durable records, synchronous = FULL",
        *("callers", "records/s", "p50 ms", "in one commit", "bare rows/s so", "rate × bare"),
        note="bare sqlite3 beside it, as many rows in one commit",
    )

    batches: list[float] = []

    async def record(number: int) -> None:
        await world.storage.record(Recording(intents=(world.message(number),)))
        batches.append(world.storage.last_batch)

    for callers in CALLERS:
        batches.clear()
        speed, middle = await rate(record, callers, seconds)
        batch = max(1, round(report.median(batches)))
        bare = batch / commit_time(directory, batch, seconds / 2)
        table.add(callers, speed, middle, batch, bare, speed / bare)
    return table


async def lives(world: World, seconds: float) -> report.Table:
    """Claims and ends, 64 at a time, of what the records left behind."""
    ended, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds and (done := await world.cycle(64)):
        ended += done
    table = report.Table("claimed and ended, 64 at a time", "messages", "a second")
    table.add(ended, ended / (time.perf_counter() - started))
    return table


async def growth(world: World, chosen: argparse.Namespace) -> report.Table:
    """What a claim, a poll and the sweeps cost as history and backlog grow."""
    storage = world.storage
    table = report.Table(
        "ms for one call, as history and backlog grow",
        *("ended rows", "pending rows", "record", "claim + end", "claim, empty", "poll", "sweeps", "gauges"),
    )
    ended = pending = 0
    for history, backlog in ((0, 0), (chosen.history, 0), (chosen.history, chosen.backlog)):
        while await world.cycle(256):
            pass
        await _fill(world, "done", history - ended)
        await _fill(world, "pending", backlog - pending)
        ended, pending = history, backlog
        nothing = ClaimRequest(session=world.session, limit=1, ops=frozenset({Op.STOP}))
        table.add(
            history,
            backlog,
            await spent(lambda: storage.record(Recording(intents=(world.message(1),)))),
            await spent(lambda: world.cycle(1)),
            await spent(partial(storage.claim, nothing)),
            await spent(lambda: storage.poll(world.node)),
            await spent(lambda: _sweeps(world)),
            await spent(storage.unfinished),
        )
    return table


async def _sweeps(world: World) -> None:
    await world.storage.redrive(world.node, 500)
    await world.storage.expire_due(world.node, 500)
    await world.storage.expire_unheld(world.node, 5.0, 500)


async def _fill(world: World, state: str, rows: int) -> None:
    """Rows of messages, written straight into the table: only their number matters."""

    def fill(connection: sa.Connection) -> None:
        now = SYSTEM.now()
        values = []
        for number in range(rows):
            intent = world.message(number)
            values.append(
                {
                    "id": intent.id,
                    "project_id": intent.project_id,
                    "sender": "bench",
                    "recipient": intent.agent_slug,
                    "recipient_agent_id": intent.agent_id,
                    "agent_slug": intent.agent_slug,
                    "msg": TEXT,
                    "broker_id": intent.broker_id,
                    "dispatch_state": state,
                    "seq": 10_000_000 + now + number,
                    "deadline_at": now + 86_400_000_000,
                    "route": "forward",
                    "principal": "bench",
                    "request_id": "bench",
                    "node_id": world.node,
                    "created": now,
                    "ended_at": None if state == "pending" else now,
                }
            )
        if values:
            connection.execute(sa.insert(messages), values)

    await world.storage.sql.transaction(fill)


if __name__ == "__main__":
    parser = script.arguments(__doc__, seconds=3.0)
    parser.add_argument("--history", type=int, default=100_000, help="ended messages that are there at last")
    parser.add_argument("--backlog", type=int, default=10_000, help="pending messages that are there at last")
    script.run(measure, parser.parse_args(), steps=3)
