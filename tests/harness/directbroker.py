"""Our own broker program as a process that hubs call over HTTP, with a proxy in the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from broker.keep import STATE
from broker.keeping.child import started_at
from tests.harness.hubclient import HubClient, Json
from tests.harness.processes import ROOT, Child, eventually
from tests.harness.proxy import Proxy

QUICK = {"backoff": 0.05, "backoff_most": 0.2, "message_wait": 0.4, "heartbeat": 1.0}


def a_free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class DirectBroker:
    """One folder, one port, and the process that serves there now. Hubs know the proxy's address."""

    def __init__(self, folder: Path, proxy: Proxy, **settings: Any) -> None:
        self.folder = folder
        self.proxy = proxy
        self.settings = settings
        self.identity: Json = {}
        self.child: Child | None = None
        self._log_of_requests = folder / "broker.log"

    @property
    def id(self) -> str:
        return str(self.identity["broker_id"])

    def known_as(self, identity: Json) -> None:
        self.identity = identity
        home = self.folder / "broker"
        home.mkdir(parents=True, mode=0o700, exist_ok=True)
        kept = {"brokerId": identity["broker_id"], "secret": identity["secret"], "name": "direct"}
        (home / "identity.json").write_text(json.dumps(kept))

    async def start(self, hubs: list[str], **settings: Any) -> None:
        """Serves from now on."""
        asked = {
            "dir": str(self.folder / "broker"),
            "hubs": hubs,
            "listen": f"127.0.0.1:{self.proxy.target}",
            "dial": False,
            **QUICK,
            **self.settings,
            **settings,
        }
        self.child = Child(
            [sys.executable, "-m", "tests.broker.runner", json.dumps(asked)], self._log_of_requests, cwd=ROOT
        )
        await eventually(self._serves, "the endpoint of the broker answers")

    async def _serves(self) -> bool:
        assert self.child
        assert self.child.alive, self.child.tail()
        with contextlib.suppress(httpx2.TransportError):
            async with httpx2.AsyncClient(trust_env=False) as client:
                answer = await client.get(f"http://127.0.0.1:{self.proxy.target}/healthz")
                return bool(answer.status_code == 200)
        return False

    def kill(self) -> None:
        if self.child:
            self.child.kill()

    def runs(self, agent_id: str) -> list[str]:
        """The runs of an agent that ever began here."""
        return sorted(path.name for path in (self.folder / "broker" / "agents" / agent_id / "runs").glob("*"))

    def log_of(self, agent_id: str) -> str:
        log = self.folder / "broker" / "agents" / agent_id / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def sweep(self) -> None:
        """Kill what is left: agents first, so that keepers still write their end."""
        self.kill()
        for kind in ("agent", "keeper"):
            for state in self.folder.glob(f"broker/agents/*/runs/*/{STATE}"):
                who = json.loads(state.read_text())[kind]
                if who and started_at(who["pid"]) == who["start"]:
                    os.kill(who["pid"], signal.SIGKILL)
            time.sleep(0.01)


@contextlib.contextmanager
def a_direct_broker(folder: Path, **settings: Any) -> Iterator[DirectBroker]:
    """Not known to any hub, and not running yet."""
    with Proxy(a_free_port()) as proxy:
        broker = DirectBroker(folder, proxy, **settings)
        try:
            yield broker
        except BaseException:
            if broker.child:
                print(f"--- {broker.child.log}\n{broker.child.tail()}", file=sys.stderr)
            raise
        finally:
            broker.sweep()


class DirectScene:
    """A broker with an endpoint, and a project whose agents it runs."""

    def __init__(self, api: HubClient, broker: DirectBroker, project: str) -> None:
        self.api = api
        self.broker = broker
        self.project = project

    async def agent(self, program: str, name: str | None = None, **config: Any) -> Json:
        command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", program]
        return await self.api.create_agent(
            self.project, self.broker.id, name, config={"command": command, "stopGrace": "5s", **config}
        )

    async def row(self) -> Json:
        return await self.api.broker(self.broker.id)

    async def held(self) -> Json:
        async def probe() -> Json | None:
            row = await self.row()
            return row if row["connectedHubId"] else None

        return await eventually(probe, "somebody holds the broker")

    async def let_go(self) -> Json:
        async def probe() -> Json | None:
            row = await self.row()
            return row if not row["connectedHubId"] else None

        return await eventually(probe, "nobody holds the broker")


@asynccontextmanager
async def direct_scene(
    api: HubClient, folder: Path, *, running: bool = True, **settings: Any
) -> AsyncIterator[DirectScene]:
    with a_direct_broker(folder, **settings) as broker:
        broker.known_as(await api.register_broker(endpoint=broker.proxy.url))
        project = await api.create_project()
        if running:
            await broker.start([api.url])
        yield DirectScene(api, broker, project)
