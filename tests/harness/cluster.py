"""Several hubs on one PostgreSQL, each a process on its own port, with one record of all calls.

async with Cluster(tmp_path, postgres_dsn) as cluster:      # three hubs, started together
    one, two, three = cluster.hubs                          # each a HubProcess: api, kill, freeze, thaw, terminate
    identity = await one.api.register_broker()
    async with cluster.broker(identity, first=two) as broker:
        owner = await cluster.owner(identity["broker_id"])
"""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import anyio

from tests.harness.brokerprocess import BrokerProcess
from tests.harness.history import Event, History, read
from tests.harness.hubclient import Json
from tests.harness.hubprocess import HubProcess
from tests.harness.processes import PATIENCE, ROOT, eventually

SHORT = {
    "node.beat": "500ms",
    "node.lost_after": "2s",
    "node.grace": "3s",
    "node.drain": "5s",
    "bus.probe": "1s",
    "channel.renew": "1s",
    "channel.stale_after": "5s",
    "sweep.nodes": "500ms",
}
"""On top of those of one hub: a dead or silent node is noticed in seconds."""

B = TypeVar("B", bound=BrokerProcess)
DATABASE = 'config: {dsn: "${POINTSMAN_DSN}"}'
BEHIND_A_POOLER = 'config: {dsn: "${POINTSMAN_DSN}", listen_dsn: "${POINTSMAN_LISTEN_DSN}", statement_cache_size: 0}'


def config(*, pooled: bool = False) -> str:
    """What the operator of many hubs is given."""
    text = (ROOT / "conf" / "postgres.yaml").read_text()
    assert DATABASE in text, "conf/postgres.yaml takes its DSN from the environment"
    return text.replace(DATABASE, BEHIND_A_POOLER) if pooled else text


class Cluster:
    """Enter it. At its end the hubs are killed: what stopping does has tests of its own."""

    def __init__(
        self,
        directory: Path,
        dsn: str | Sequence[str],
        *,
        hubs: int = 3,
        listen_dsn: str | Sequence[str] | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        """A DSN may be one for each hub: each through its own proxy, say. With `listen_dsn`, `dsn` is a pooler's."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.history = History(directory / "calls.jsonl")
        self.hubs: list[HubProcess] = []
        self._dsns = dsn
        self._listen_dsns = listen_dsn
        self._settings = {**SHORT, **(settings or {})}
        self._secrets = {"SESSION_SECRET": secrets.token_urlsafe(32), "POINTSMAN_DEV_TOKEN": secrets.token_urlsafe(24)}
        for _ in range(hubs):
            self.add()

    async def __aenter__(self) -> Self:
        try:
            await self.start(*self.hubs)
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.show()
        for hub in self.hubs:
            if hub.client:
                await hub.client.close()
        self._end()

    def __iter__(self) -> Iterator[HubProcess]:
        return iter(self.hubs)

    # -- hubs

    def add(self, **settings: str) -> HubProcess:
        """One more hub, not started; `settings` with `__` for the dot: `node__beat="1s"`."""
        n = len(self.hubs)
        env = {**self._secrets, "POINTSMAN_DSN": _nth(self._dsns, n)}
        if self._listen_dsns:
            env["POINTSMAN_LISTEN_DSN"] = _nth(self._listen_dsns, n)
        hub = HubProcess(
            self.directory / f"hub-{n}",
            settings={**self._settings, **{name.replace("__", "."): value for name, value in settings.items()}},
            config=config(pooled=self._listen_dsns is not None),
            env=env,
            history=self.history,
            name=f"hub-{n}",
        )
        self.hubs.append(hub)
        return hub

    async def start(self, *hubs: HubProcess) -> None:
        """At once, as a deployment does."""
        async with anyio.create_task_group() as tasks:
            for hub in hubs:
                tasks.start_soon(hub.start)

    @property
    def alive(self) -> list[HubProcess]:
        return [hub for hub in self.hubs if hub.alive]

    def any(self, chance: random.Random) -> HubProcess:
        return chance.choice(self.alive)

    def others(self, *hubs: HubProcess) -> list[HubProcess]:
        """The live ones beside these."""
        return [hub for hub in self.alive if hub not in hubs]

    def of_node(self, node: str | None) -> HubProcess | None:
        return next((hub for hub in self.hubs if hub.ready and hub.node == node), None)

    # -- brokers

    @overload
    def broker(
        self, identity: Json, *, first: HubProcess | None = None, name: str = "broker", kind: type[B], **settings: Any
    ) -> B: ...
    @overload
    def broker(
        self, identity: Json, *, first: HubProcess | None = None, name: str = "broker", **settings: Any
    ) -> BrokerProcess: ...
    def broker(
        self,
        identity: Json,
        *,
        first: HubProcess | None = None,
        name: str = "broker",
        kind: type[BrokerProcess] = BrokerProcess,
        **settings: Any,
    ) -> BrokerProcess:
        """A scripted broker that dials these hubs in turn, `first` before the others. Enter it."""
        urls = settings.pop("urls", None) or [hub.url for hub in self.in_order(first)]
        quick = {"ping_every": 1.0, "pong_wait": 4.0}
        return kind(self.directory / name, urls=urls, **identity, **{**quick, **settings})

    def in_order(self, first: HubProcess | None = None) -> list[HubProcess]:
        """All that were ever started, beginning with `first`."""
        known = [hub for hub in self.hubs if hub.ready]
        return known if first is None else [first, *(hub for hub in known if hub is not first)]

    async def affinity(self, broker_id: str) -> Json:
        """The broker as the cluster sees it, asked of a live hub."""
        return await self.alive[0].api.broker(broker_id)

    async def owner(self, broker_id: str, patience: float = PATIENCE) -> HubProcess:
        """The live hub that holds the broker's socket, awaited. Raises: Late."""

        async def holder() -> HubProcess | None:
            seen = await self.affinity(broker_id)
            hub = self.of_node(seen.get("connectedHubId")) if seen["status"] == "online" else None
            return hub if hub and hub.alive else None

        return await eventually(holder, f"a hub that holds broker {broker_id}", patience=patience)

    # -- what happened

    def calls(self) -> list[Event]:
        return read(self.history.path)

    def show(self) -> None:
        """The tails of the logs, for a failure."""
        for hub in self.hubs:
            if hub.child:
                print(f"--- {hub.child.log} (exit {hub.child.exit_code})\n{hub.child.tail(40)}", file=sys.stderr)

    def _end(self) -> None:
        for hub in self.hubs:
            if hub.child:
                hub.child.kill()
        self.history.close()


def _nth(given: str | Sequence[str], n: int) -> str:
    return given if isinstance(given, str) else given[n % len(given)]
