"""How long brokers and callers are alone while three hubs are restarted one after the other (SIGTERM, then started
again), with the default settings. A broker's gap is the time without any session of its own: ours dials the next hub
before it leaves, a stock one dials when it was closed. A call without an answer is asked again with the same key.
"""

from __future__ import annotations

import argparse
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from bench.rig import report, script
from bench.takeover import DEFAULTS
from kernel.testing.postgres import Server
from tests.harness.brokerprocess import BrokerProcess
from tests.harness.cluster import Cluster
from tests.harness.history import gaps
from tests.harness.hubclient import Answered, HubClient
from tests.harness.insisting import Callers

BROKERS = {"ours": 4, "stock": 2}
LEAVES_WITHIN = 60.0


async def ask(api: HubClient, agent: str, _number: int, key: str) -> Answered:
    answer = await api.do("start", agent, idempotency_key=key, prefer="wait=30")
    assert answer.status in (200, 503), answer
    return answer


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(Server(durable=True))
        cluster = await stack.enter_async_context(
            Cluster(directory, server.create_database("bench"), settings=DEFAULTS)
        )
        brokers, agents = await _world(cluster, stack)
        callers = Callers(cluster, ask)
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


if __name__ == "__main__":
    parser = script.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="hubs that are restarted [default: 3]")
    chosen = parser.parse_args()
    script.run(measure, chosen, steps=chosen.rounds)
