"""Several hubs on one PostgreSQL of their own that waits for its disk, each a process on its own port.

The configuration is the operator's, `conf/postgres.yaml`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from bench.rig.children import PATIENCE, Child, child
from bench.rig.hub import Hub, hub
from kernel.testing.postgres import Server

CONF = Path(__file__).resolve().parents[2] / "conf" / "postgres.yaml"
DATABASE = "bench"


class Cluster:
    """Enter `clustered` to get one."""

    def __init__(self, server: Server, hubs: Sequence[Hub]) -> None:
        self.server = server
        self.hubs = list(hubs)

    def sql(self, statement: str) -> list[list[str]]:
        return self.server.sql(statement, DATABASE)

    async def owner(self, broker_id: str) -> Hub:
        """The hub that holds the broker's socket, awaited. Raises: TimeoutError."""
        with anyio.fail_after(PATIENCE):
            while True:
                seen = await self.hubs[0].ask("GET", f"/runtime-brokers/{broker_id}")
                for one in self.hubs:
                    if seen["status"] == "online" and one.node == seen.get("connectedHubId"):
                        return one
                await anyio.sleep(0.05)


@asynccontextmanager
async def postgres(settings: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
    """The newest there is, with its own defaults but for what the settings name."""
    with Server(durable=True, settings=settings) as server:
        server.create_database(DATABASE)
        yield server


@asynccontextmanager
async def clustered(
    directory: Path,
    server: Server,
    *,
    hubs: int = 2,
    plugins: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Cluster]:
    """So many hubs, started one after the other."""
    env = environment(server)
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(
                hub(directory / f"hub-{number}", configuration(plugins), settings=settings, env=env)
            )
            for number in range(hubs)
        ]
        yield Cluster(server, made)


def environment(server: Server) -> dict[str, str]:
    """What all hubs of one database are told."""
    return {
        "POINTSMAN_DSN": server.dsn(DATABASE),
        "SESSION_SECRET": secrets.token_urlsafe(32),
        "POINTSMAN_DEV_TOKEN": secrets.token_urlsafe(24),
    }


def configuration(plugins: Sequence[str] = ()) -> str:
    more = "".join(f"  - use: {name}\n" for name in plugins)
    return CONF.read_text() + more


@asynccontextmanager
async def world(cluster: Cluster, agents: int, directory: Path) -> AsyncIterator[tuple[list[str], Child, Hub]]:
    """Agents on a broker that answers at once and whose socket the first hub holds; the broker's process; and another
    hub, through which calls have to go to it."""
    owner, entry = cluster.hubs[0], cluster.hubs[1]
    identity = await owner.register_broker("answering")
    with child("bench.rig.answering", cwd=directory, asked=True) as broker:
        await broker.ask({"url": owner.url, **identity})
        assert await cluster.owner(identity["id"]) is owner
        yield await owner.agents(identity["id"], agents), broker, entry
