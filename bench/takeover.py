"""How long a broker's agents cannot be reached when the hub with its socket is killed (kill -9): from the kill to the
answer of a call through another hub, which was asked again and again. Default settings, our own broker.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anyio

from bench.rig import report, script
from kernel.testing.postgres import Server
from tests.harness.cluster import SHORT as QUICK
from tests.harness.cluster import Cluster
from tests.harness.hubprocess import SHORT, HubProcess
from tests.harness.ownbroker import OwnBroker

ROUNDS = 5
DEFAULTS = {
    "dispatch.http_wait": "50s", "dispatch.rolling_window": "90s", "dispatch.deadline": "15m",
    "dispatch.reconnect_grace": "5s", "channel.handshake": "30s", "channel.ping": "10s", "channel.dead_after": "25s",
    "channel.renew": "5s", "channel.stale_after": "15s", "sweep.stuck": "15s", "sweep.messages": "60s",
    "sweep.nodes": "2s", "node.beat": "2s", "node.lost_after": "6s", "node.grace": "12s", "node.drain": "30s",
    "bus.probe": "5s",
}  # fmt: skip
assert set(DEFAULTS) >= {*SHORT, *QUICK}, "every setting that the harness shortens is what an operator has"


async def takeover(cluster: Cluster, broker: OwnBroker, agent: str) -> tuple[float, float]:
    """Seconds until another hub holds the broker, and until a call through a third is answered."""
    owner = await cluster.owner(broker.broker_id)
    asked = cluster.others(owner)[0]
    began = time.monotonic()
    owner.kill()
    held = 0.0
    while True:
        if not held and await _holder(cluster, broker.broker_id) not in (None, owner):
            held = time.monotonic() - began
        answer = await asked.api.do("start", agent, prefer="wait=30")
        if answer.status == 200:
            took = time.monotonic() - began
            await owner.start(port=owner.port)  # where the broker looks for it
            return held or took, took
        await anyio.sleep(0.02)


async def _holder(cluster: Cluster, broker_id: str) -> HubProcess | None:
    seen = await cluster.affinity(broker_id)
    return cluster.of_node(seen.get("connectedHubId"))


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    table = report.Table("takeover after kill -9", "round", "another hub holds it s", "a call is answered s")
    with Server(durable=True) as server:
        async with Cluster(directory, server.create_database("bench"), settings=DEFAULTS) as cluster:
            identity = await cluster.hubs[0].api.register_broker()
            async with OwnBroker(directory / "own", identity, [hub.url for hub in cluster.hubs]) as broker:
                await cluster.owner(broker.broker_id)
                project = await cluster.hubs[0].api.create_project()
                command = {"command": ["sleep", "600"]}
                agent = await cluster.hubs[0].api.create_agent(project, broker.broker_id, config=command)
                for number in range(1, chosen.rounds + 1):
                    step(f"round {number}")
                    table.add(number, *await takeover(cluster, broker, agent["id"]))
                    await anyio.sleep(1)
    return [table]


if __name__ == "__main__":
    parser = script.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"hubs that are killed [default: {ROUNDS}]")
    chosen = parser.parse_args()
    script.run(measure, chosen, steps=chosen.rounds)
