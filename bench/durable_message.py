"""The durable message: POST …/message to its 202 on SQLite (WAL, FULL), and from there to the broker.

The floor has two parts, both measured in the same run: the bare route that does nothing (`bench/rig/bare.py`), and
bare sqlite3 that inserts as many rows of 250 bytes in one commit as the hub put into one of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import anyio

from bench.local_call import CALLERS, world
from bench.rig import report, script
from bench.rig.caller import Calls, closed_loop, request
from bench.rig.children import Child
from bench.rig.commits import TEXT, commit_time
from bench.rig.hub import Hub, serving

ARRIVES_WITHIN = 20.0
PACE = 0.02
"""Seconds from one message to the next where delivery alone is timed."""


def messages(hub: Hub, agents: list[str]) -> list[bytes]:
    """One caller for each agent."""
    body = json.dumps({"message": TEXT}).encode()
    return [request(f"/api/v1/agents/{agent}/message", hub.token, body) for agent in agents]


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> tuple[report.Table, report.Table]:
    taken = report.Table(
        "durable message: POST …/message to 202, synchronous = FULL",
        *("callers", "bare p50 ms", "in one commit", "commit ms", "202 p50 ms", "202 p99 ms", "202/s", "p50 × floor"),
        note="floor: the bare route's p50, and one bare commit of as many rows",
    )
    delivered = deliveries()
    async with (
        serving(directory / "bare", bare=True) as bare,
        serving(directory / "hub") as hub,
        world(hub, max(CALLERS), directory) as (agents, broker),
    ):
        step("time to delivery")
        alone = await paced(hub, messages(hub, agents[:1])[0], chosen.seconds)
        await deliver(delivered, f"one message each {PACE * 1000:g} ms", alone, broker)
        for callers in CALLERS:
            step(f"durable message, {callers} at once")
            floor = await closed_loop(bare.address, messages(bare, agents[:callers]), chosen.seconds / 2)
            calls, batch = await _send(hub, messages(hub, agents[:callers]), chosen.seconds)
            commit = commit_time(directory, batch, chosen.seconds / 4)
            _taken(taken, callers, floor, calls, batch, commit)
            await deliver(delivered, str(callers), calls, broker)
    return taken, delivered


async def paced(hub: Hub, asked: bytes, seconds: float) -> Calls:
    """One caller who leaves the lane time to get empty."""
    rounds: list[Calls] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        rounds.append(await closed_loop(hub.address, [asked], 1.0, most=1))
        await anyio.sleep(PACE)
    return Calls(timed=[call for one in rounds for call in one.timed], statuses={}, seconds=seconds)


async def _send(hub: Hub, asked: list[bytes], seconds: float) -> tuple[Calls, int]:
    """The calls, and how many writes one commit held while they went on."""
    batches: list[float] = []

    async def look() -> None:
        while True:
            await anyio.sleep(0.25)
            batches.append(await hub.metric("pointsman_storage_batch"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        calls = await closed_loop(hub.address, asked, seconds)
        tasks.cancel_scope.cancel()
    return calls, max(1, round(report.median(batches or [1.0])))


def _taken(table: report.Table, callers: int, floor: Calls, calls: Calls, batch: int, commit: float) -> None:
    assert set(calls.statuses) == {202}, f"not every message was answered with 202: {calls.statuses}"
    bare, durable = report.median(floor.times) * 1000, report.median(calls.times) * 1000
    late = report.percentile(calls.times, 99) * 1000
    table.add(callers, bare, batch, commit * 1000, durable, late, calls.rate, durable / (bare + commit * 1000))


async def arrivals(calls: Calls, broker: Child) -> dict[str, float]:
    """When each came to the broker. Waits for all of them, so that the next round starts with empty lanes."""
    arrived: dict[str, float] = {}
    until = time.monotonic() + ARRIVES_WITHIN
    wanted = {call.dispatch for call in calls.timed}
    while not wanted <= arrived.keys() and time.monotonic() < until:
        arrived.update(await broker.ask("arrived"))
        await anyio.sleep(0.1)
    lost = len(wanted - arrived.keys())
    assert not lost, f"{lost} of {len(wanted)} messages never reached the broker"
    return {dispatch: arrived[dispatch] for dispatch in wanted}


def deliveries() -> report.Table:
    return report.Table(
        "from the POST to the frame at the broker",
        *("callers", "messages", "p50 ms", "p99 ms", "at the broker/s", "all there after ms"),
        note="callers without pause outrun their agents' lanes, which go one by one; `all there`: after the last 202",
    )


async def deliver(table: report.Table, callers: str, calls: Calls, broker: Child) -> list[float]:
    """Waits until all are there, and adds a row. The seconds that each took."""
    arrived = await arrivals(calls, broker)
    times = [arrived[call.dispatch] - call.asked_at for call in calls.timed]
    last = max(arrived.values())
    rate = len(times) / (last - min(call.asked_at for call in calls.timed))
    late = max(0.0, last - max(call.answered_at for call in calls.timed))
    table.add(callers, len(times), report.median(times) * 1000, report.percentile(times, 99) * 1000, rate, late * 1000)
    return times


if __name__ == "__main__":
    script.run(measure, script.arguments(__doc__, seconds=4.0).parse_args(), steps=len(CALLERS) + 1)
