"""The call through the wrong hub: two hubs on one PostgreSQL, a broker whose socket the other one holds, which answers
at once. Everything is a process of its own, and the server waits for its disk.

The floor F of one call alone is the sum of what it cannot do without, each alone: PostgreSQL's part (a durable insert
with its NOTIFY, a claim, an end with its NOTIFY, in two processes without a hub around them), an HTTP round trip and a
WebSocket round trip through the hub's server and framework. The floor of many at once is the HTTP echo. Floors and
calls are measured by turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.rig import cluster, report, script
from bench.rig.caller import Calls, closed_loop, request
from bench.rig.floors import Floors, floors
from bench.rig.hub import Hub
from bench.rig.spent import Spent, everybody

VERBS = {"has-prompt": "GET", "start": "POST"}
"""What is asked of agents that run: the one that does least besides the dispatch, and one that changes its agent."""
MANY = 64
ROUNDS = 3
ALONE, TOGETHER = 2.0, 0.3
"""Goals: p50 of one alone ≤ so many F; calls a second ≥ so much of the echo's."""


def asked(hub: Hub, agents: list[str], verb: str) -> list[bytes]:
    """One caller for each agent."""
    return [request(f"/api/v1/agents/{agent}/{verb}", hub.token, method=VERBS[verb]) for agent in agents]


class Measured:
    """All rounds of one number of callers."""

    def __init__(self) -> None:
        self.floors: dict[str, list[float]] = {"database": [], "http": [], "socket": []}
        """Each round's p50 in milliseconds."""
        self.echo: list[Calls] = []
        self.calls: dict[str, list[Calls]] = {verb: [] for verb in VERBS}
        self.spent: dict[str, dict[str, float]] = {verb: {} for verb in VERBS}
        """Processor seconds by process."""

    def floor(self, name: str) -> float:
        return report.median(self.floors[name])

    def middle(self, verb: str, percent: int) -> float:
        """Median of the rounds, so that one in which the machine did something else does not count. Milliseconds."""
        return report.median([report.percentile(calls.times, percent) * 1000 for calls in self.calls[verb]])


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    async with (
        cluster.postgres() as server,
        floors(directory, server.dsn(cluster.DATABASE)) as bare,
        cluster.clustered(directory, server, hubs=chosen.hubs) as hubs,
        cluster.world(hubs, MANY, directory) as (agents, broker, entry),
    ):
        who = everybody(hubs, broker.pid)
        step("warming up")
        for verb in VERBS:
            await closed_loop(entry.address, asked(entry, agents, verb), 1.0)
        one, many = Measured(), Measured()
        for number in range(1, ROUNDS + 1):
            step(f"one at a time, round {number}")
            await _floors(bare, one, chosen.seconds / ROUNDS)
            await _calls(entry, agents[:1], one, chosen.seconds / ROUNDS, who)
        for number in range(1, ROUNDS + 1):
            step(f"{MANY} at once, round {number}")
            many.echo.append(await bare.http(MANY, chosen.seconds / ROUNDS))
            await _calls(entry, agents, many, chosen.seconds / ROUNDS, who)
    return [_alone(one), _together(many), _spent(one, many)]


async def _floors(bare: Floors, measured: Measured, seconds: float) -> None:
    http = await bare.http(1, seconds / 2)
    measured.echo.append(http)
    for name, times in (
        ("database", [trip.back for trip in await bare.database(seconds)]),
        ("http", http.times),
        ("socket", await bare.socket(seconds / 2)),
    ):
        measured.floors[name].append(report.median(times) * 1000)


async def _calls(hub: Hub, agents: list[str], measured: Measured, seconds: float, who: dict[int, str]) -> None:
    for verb in VERBS:
        spent = Spent(who)
        calls = await closed_loop(hub.address, asked(hub, agents, verb), seconds)
        assert set(calls.statuses) == {200}, f"not every call was answered with 200: {calls.statuses}"
        measured.calls[verb].append(calls)
        for name, used in spent.so_far().items():
            measured.spent[verb][name] = measured.spent[verb].get(name, 0.0) + used


def _alone(measured: Measured) -> report.Table:
    table = report.Table(
        "cross-hub call, one at a time",
        *("call", "PostgreSQL ms", "+ HTTP ms", "+ socket ms", "= F ms", "p50 ms", "p99 ms", "p50 × F"),
        note=f"goal: p50 ≤ {ALONE:g} × F; medians of {ROUNDS} rounds",
    )
    parts = [measured.floor(name) for name in ("database", "http", "socket")]
    for verb in VERBS:
        middle = measured.middle(verb, 50)
        table.add(verb, *parts, sum(parts), middle, measured.middle(verb, 99), middle / sum(parts))
    return table


def _together(measured: Measured) -> report.Table:
    table = report.Table(
        f"cross-hub calls, {MANY} at once over as many agents",
        *("call", "echoes/s", "calls/s", "p50 ms", "p99 ms", "rate × echo"),
        note=f"goal: ≥ {TOGETHER:g} × the bare falcon echo; medians of {ROUNDS} rounds",
    )
    echo = report.median([calls.rate for calls in measured.echo])
    for verb in VERBS:
        rate = report.median([calls.rate for calls in measured.calls[verb]])
        table.add(verb, echo, rate, measured.middle(verb, 50), measured.middle(verb, 99), rate / echo)
    return table


def _spent(one: Measured, many: Measured) -> report.Table:
    names = list(next(iter(one.spent.values())))
    table = report.Table(
        "processor time of a call, in microseconds",
        *("call", "at once", *names, "all"),
        note="PostgreSQL: all its processes; the callers' own part is in `all`",
    )
    for measured, callers in ((one, 1), (many, MANY)):
        for verb in VERBS:
            count = sum(len(calls.timed) for calls in measured.calls[verb])
            each = [measured.spent[verb][name] / count * 1e6 for name in names]
            table.add(verb, callers, *each, sum(each))
    return table


if __name__ == "__main__":
    parser = script.arguments(__doc__, seconds=5.0)
    parser.add_argument("--hubs", type=int, default=2, help="two take part, the others only listen [default: 2]")
    script.run(measure, parser.parse_args(), steps=1 + 2 * ROUNDS)
