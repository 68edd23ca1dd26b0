"""The durable message through the wrong hub: POST …/message to its 202, and from there to the broker, whose socket
another hub holds. Everything is a process of its own, and the server waits for its disk.

Floors, in the same run. Of the 202: an HTTP echo of as many callers, and one commit of as many bare rows as the hub put
into one of its own. Of the delivery of one message alone: PostgreSQL's part (a durable insert with its NOTIFY, and a
claim, in two processes without a hub around them), and half of an HTTP and of a WebSocket round trip.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import anyio

from bench.durable_message import PACE, arrivals, messages, paced, sent
from bench.rig import cluster, report
from bench.rig.caller import Calls
from bench.rig.children import Child
from bench.rig.floors import Floors, floors

CALLERS = (1, 16, 64)


async def measure(chosen: argparse.Namespace, step: report.Step, directory: Path) -> list[report.Table]:
    taken = report.Table(
        "durable message through the wrong hub: POST …/message to 202",
        *("callers", "echo p50 ms", "in one commit", "commit ms", "202 p50 ms", "202 p99 ms", "202/s", "p50 × floor"),
        *("echoes/s", "rate × echo"),
        note="floor: the echo's p50, and one bare commit of as many rows",
    )
    delivered = report.Table(
        "from the POST to the frame at the broker",
        *("callers", "messages", "p50 ms", "p99 ms", "at the broker/s", "rate × echo", "all there after ms"),
        note="callers without pause outrun their agents' lanes, which go one by one; `all there`: after the last 202",
    )
    async with (
        cluster.postgres() as server,
        floors(directory, server.dsn(cluster.DATABASE)) as bare,
        cluster.clustered(directory, server) as hubs,
        cluster.world(hubs, max(CALLERS), directory) as (agents, broker, entry),
    ):
        warm, _ = await sent(entry, messages(entry, agents), 1.0)
        await arrivals(warm, broker)
        step("one message alone")
        alone = await _alone(bare, await paced(entry, messages(entry, agents[:1])[0], chosen.seconds), broker)
        for callers in CALLERS:
            step(f"{callers} at once")
            echo = await bare.http(callers, chosen.seconds / 4)
            calls, batch = await sent(entry, messages(entry, agents[:callers]), chosen.seconds)
            arrived = await arrivals(calls, broker)
            commit = report.median(await bare.rows(batch, chosen.seconds / 4)) * 1000
            _taken(taken, callers, echo, calls, batch, commit)
            _delivered(delivered, callers, echo, calls, arrived)
    return [taken, alone, delivered]


async def _alone(bare: Floors, calls: Calls, broker: Child) -> report.Table:
    """One message after the other, each with time to arrive before the next."""
    table = report.Table(
        f"one message alone, another {PACE * 1000:g} ms after its 202",
        *("messages", "PostgreSQL ms", "+ HTTP/2 ms", "+ socket/2 ms", "= floor ms", "at the broker p50 ms", "p99 ms"),
        *("p50 × floor",),
        note="from the POST to the frame at the broker",
    )
    arrived = await arrivals(calls, broker)
    times = [(arrived[call.dispatch] - call.asked_at) * 1000 for call in calls.timed]
    there = report.median([trip.there for trip in await bare.database(1.0)]) * 1000
    http = report.median((await bare.http(1, 0.5)).times) * 500
    socket = report.median(await bare.socket(0.5)) * 500
    middle, floor = report.median(times), there + http + socket
    table.add(len(times), there, http, socket, floor, middle, report.percentile(times, 99), middle / floor)
    return table


def _taken(table: report.Table, callers: int, echo: Calls, calls: Calls, batch: int, commit: float) -> None:
    assert set(calls.statuses) == {202}, f"not every message was answered with 202: {calls.statuses}"
    bare, durable = report.median(echo.times) * 1000, report.median(calls.times) * 1000
    late, ratio = report.percentile(calls.times, 99) * 1000, durable / (bare + commit)
    table.add(callers, bare, batch, commit, durable, late, calls.rate, ratio, echo.rate, calls.rate / echo.rate)


def _delivered(table: report.Table, callers: int, echo: Calls, calls: Calls, arrived: dict[str, float]) -> None:
    times = [(arrived[call.dispatch] - call.asked_at) * 1000 for call in calls.timed]
    began, last = min(call.asked_at for call in calls.timed), max(arrived.values())
    late = max(0.0, last - max(call.answered_at for call in calls.timed)) * 1000
    rate = len(times) / (last - began)
    table.add(callers, len(times), report.median(times), report.percentile(times, 99), rate, rate / echo.rate, late)


async def run(chosen: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=chosen.directory) as made, report.progress(1 + len(CALLERS)) as step:
        tables = await measure(chosen, step, Path(made))
    report.tell(chosen, *tables)


if __name__ == "__main__":
    anyio.run(run, report.arguments(__doc__, seconds=4.0).parse_args(), backend_options={"use_uvloop": True})
