"""How long brokers and callers are alone while three hubs are restarted one after the other (SIGTERM, then started
again), with the default settings. A broker's gap is the time without any session of its own: ours dials the next hub
before it leaves, a stock one dials when it was closed. A call without an answer is asked again with the same key.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import httpx2

from bench.rig import report
from bench.takeover import DEFAULTS
from kernel.testing.postgres import Server
from tests.harness.brokerprocess import BrokerProcess
from tests.harness.cluster import Cluster
from tests.harness.history import gaps

BROKERS = {"ours": 4, "stock": 2}
LEAVES_WITHIN = 60.0
ANSWERED_WITHIN = 60.0
"""Seconds from the first try of a call; one that takes longer ends the run."""


class Callers:
    """One for each agent: calls it through hubs in turn, and insists."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.times: list[float] = []
        """Seconds from the first try of each call to its true answer."""
        self.repeated = 0
        self._over = anyio.Event()

    @asynccontextmanager
    async def on(self, agents: list[str]) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            for agent in agents:
                tasks.start_soon(self._call, agent)
            yield
            self._over.set()

    async def _call(self, agent: str) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            began = time.monotonic()
            with anyio.fail_after(ANSWERED_WITHIN):
                while not await self._answered(agent, number):
                    self.repeated += 1
                    await anyio.sleep(0.02)
            self.times.append(time.monotonic() - began)
            await anyio.sleep(0.02)

    async def _answered(self, agent: str, number: int) -> bool:
        alive = self.cluster.alive
        api = alive[(number + self.repeated) % len(alive)].api
        try:
            answer = await api.do("start", agent, idempotency_key=f"{agent}-{number}", prefer="wait=30")
        except (httpx2.HTTPError, RuntimeError):
            return False
        assert answer.status in (200, 503), answer
        return answer.status == 200


async def measure(chosen: argparse.Namespace, step: report.Step, directory: Path) -> list[report.Table]:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(Server(durable=True))
        cluster = await stack.enter_async_context(
            Cluster(directory, server.create_database("bench"), settings=DEFAULTS)
        )
        brokers, agents = await _world(cluster, stack)
        callers = Callers(cluster)
        async with callers.on(agents):
            await anyio.sleep(1)
            for number in range(chosen.rounds):
                hub = cluster.hubs[number % len(cluster.hubs)]
                step(f"restart {number + 1}")
                assert await hub.terminate(patience=LEAVES_WITHIN) == 0
                await hub.restart()
                await anyio.sleep(1)
        return [_gaps(brokers), _calls(callers)]


async def _world(cluster: Cluster, stack: AsyncExitStack) -> tuple[dict[str, list[BrokerProcess]], list[str]]:
    """Brokers over all hubs, and an agent on each."""
    api = cluster.hubs[0].api
    project = await api.create_project()
    brokers: dict[str, list[BrokerProcess]] = {kind: [] for kind in BROKERS}
    agents: list[str] = []
    for kind, count in BROKERS.items():
        for number in range(count):
            identity = await api.register_broker()
            first = cluster.hubs[len(agents) % len(cluster.hubs)]
            broker = await stack.enter_async_context(
                cluster.broker(identity, first=first, name=f"{kind}-{number}", personality=kind)
            )
            await cluster.owner(broker.broker_id)
            agents.append((await api.create_agent(project, broker.broker_id))["id"])
            brokers[kind].append(broker)
    return brokers, agents


def _gaps(brokers: dict[str, list[BrokerProcess]]) -> report.Table:
    table = report.Table(
        "brokers in a rolling restart", "broker", "of them", "sessions", "gaps", "median gap s", "longest gap s"
    )
    for kind, those in brokers.items():
        sessions = sum(len(one.events(what="connected")) for one in those)
        found = [gap for one in those for gap in gaps(one.history())]
        table.add(kind, len(those), sessions, len(found), report.median(found or [0.0]), max(found, default=0.0))
    return table


def _calls(callers: Callers) -> report.Table:
    table = report.Table(
        "calls meanwhile", "answered", "asked again", "p50 ms", "p99 ms", "slowest ms", note="first try to true answer"
    )
    times = [one * 1000 for one in callers.times]
    table.add(len(times), callers.repeated, report.median(times), report.percentile(times, 99), max(times))
    return table


async def run(chosen: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as made, report.progress(chosen.rounds) as step:
        tables = await measure(chosen, step, Path(made))
    report.tell(chosen, *tables)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="hubs that are restarted [default: 3]")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    anyio.run(run, parser.parse_args(), backend_options={"use_uvloop": True})
