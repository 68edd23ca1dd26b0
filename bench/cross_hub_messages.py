"""The durable message through the wrong hub: POST …/message to its 202, and from there to the broker, whose socket
another hub holds. Everything is a process of its own, and the server waits for its disk.

Floors, in the same run. Of the 202: an HTTP echo of as many callers, and the durable commit of one bare row. Of the
delivery of one message alone: PostgreSQL's part (a durable insert with its NOTIFY, and a claim, in two processes
without a hub around them), and half of an HTTP and of a WebSocket round trip.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.durable_message import PACE, arrivals, deliver, deliveries, messages, paced
from bench.local_call import CALLERS
from bench.rig import cluster, report, script
from bench.rig.caller import Calls, closed_loop
from bench.rig.children import Child
from bench.rig.floors import Floors, floors


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    taken = report.Table(
        "durable message through the wrong hub: POST …/message to 202",
        *("callers", "echo p50 ms", "commit ms", "202 p50 ms", "202 p99 ms", "202/s", "p50 × floor", "rate × echo"),
        note="floor: the echo's p50, and one bare durable commit",
    )
    delivered = deliveries()
    async with (
        cluster.postgres() as server,
        floors(directory, server.dsn(cluster.DATABASE)) as bare,
        cluster.clustered(directory, server) as hubs,
        cluster.world(hubs, max(CALLERS), directory) as (agents, broker, entry),
    ):
        await arrivals(await closed_loop(entry.address, messages(entry, agents), 1.0), broker)
        step("one message alone")
        alone = await _alone(
            bare, await paced(entry, messages(entry, agents[:1])[0], chosen.seconds), delivered, broker
        )
        for callers in CALLERS:
            step(f"{callers} at once")
            echo = await bare.http(callers, chosen.seconds / 4)
            calls = await closed_loop(entry.address, messages(entry, agents[:callers]), chosen.seconds)
            await deliver(delivered, str(callers), calls, broker)
            _taken(taken, callers, echo, calls, report.median(await bare.commit(chosen.seconds / 4)) * 1000)
    return [taken, alone, delivered]


async def _alone(bare: Floors, calls: Calls, delivered: report.Table, broker: Child) -> report.Table:
    """One message after the other, each with time to arrive before the next."""
    pace = f"another {PACE * 1000:g} ms after its 202"
    table = report.Table(
        f"one message alone, {pace}",
        *("PostgreSQL ms", "+ HTTP/2 ms", "+ socket/2 ms", "= floor ms", "at the broker p50 ms", "p50 × floor"),
        note="from the POST to the frame at the broker",
    )
    middle = report.median(await deliver(delivered, pace, calls, broker)) * 1000
    there = report.median([trip.there for trip in await bare.database(1.0)]) * 1000
    http = report.median((await bare.http(1, 0.5)).times) * 500
    socket = report.median(await bare.socket(0.5)) * 500
    floor = there + http + socket
    table.add(there, http, socket, floor, middle, middle / floor)
    return table


def _taken(table: report.Table, callers: int, echo: Calls, calls: Calls, commit: float) -> None:
    assert set(calls.statuses) == {202}, f"not every message was answered with 202: {calls.statuses}"
    bare, durable = report.median(echo.times) * 1000, report.median(calls.times) * 1000
    late, ratio = report.percentile(calls.times, 99) * 1000, durable / (bare + commit)
    table.add(callers, bare, commit, durable, late, calls.rate, ratio, calls.rate / echo.rate)


if __name__ == "__main__":
    script.run(measure, script.arguments(__doc__, seconds=4.0).parse_args(), steps=1 + len(CALLERS))
