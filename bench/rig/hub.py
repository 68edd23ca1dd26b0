"""A hub of its own process, with the limits that would refuse a measurement out of the way: on a SQLite of its own, or
one of several on a PostgreSQL (`bench.rig.cluster`)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2

from bench.rig.children import PATIENCE, Child, child

PLUGINS = (
    "routes.local",
    "routes.forward",
    "routes.direct",
    "routes.hold",
    "routes.refuse",
    "environment.static",
    "metrics.prometheus",
    "auth.brokers",
    "auth.agents",
    "auth.dev",
)
OUT_OF_THE_WAY = {
    "limits.requests": "1000000/1s",
    "limits.joins": "1000000/1m",
    "limits.upgrades": "1000000/1m",
}


class Hub:
    """A hub that is ready, and a client that may do everything."""

    def __init__(self, process: Child, ready: Mapping[str, Any], client: httpx2.AsyncClient) -> None:
        self.process = process
        self.url = str(ready["url"])
        self.token = str(ready["token"])
        self.node = str(ready["nodeId"])
        self.pid = int(ready["pid"])
        self.client = client

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname, self.url
        assert parts.port, self.url
        return parts.hostname, parts.port

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON. Raises: RuntimeError for anything but 2xx."""
        got = await self.client.request(method, f"/api/v1{path}", json=body)
        if not got.is_success:
            raise RuntimeError(f"{method} {path}: {got.status_code} {got.text[:300]}")
        return got.json() if got.content else None

    async def register_broker(self, name: str) -> dict[str, str]:
        """Its identity: `{id, secret}`, the secret in base64."""
        made = await self.ask("POST", "/brokers", {"name": name, "autoProvide": True})
        join = {"brokerId": made["brokerId"], "joinToken": made["joinToken"], "hostname": "bench", "version": "bench"}
        return {"id": made["brokerId"], "secret": (await self.ask("POST", "/brokers/join", join))["secretKey"]}

    async def agents(self, broker_id: str, count: int) -> list[str]:
        """The ids of agents that run on this broker."""
        project = (await self.ask("POST", "/projects", {"name": "bench"}))["id"]
        made: list[str] = []
        for number in range(count):
            asked = {"name": f"agent-{number}", "projectId": project, "runtimeBrokerId": broker_id}
            answer = await self.ask("POST", "/agents", {**asked, "config": {"command": ["true"]}})
            made.append(answer["agent"]["id"])
        return made

    async def metric(self, name: str) -> float:
        """The sum over all labels of one metric."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def config(plugins: Sequence[str] = ()) -> str:
    """One hub on SQLite."""
    uses = [{"use": "sqlite", "config": {"path": "hub.db"}}, *({"use": name} for name in (*PLUGINS, *plugins))]
    return json.dumps({"plugins": uses})  # JSON is YAML


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    bare: bool = False,
    plugins: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Hub]:
    """A hub in `directory` until the end of the block. `bare`: see `bench.rig.bare`."""
    async with hub(directory, config(plugins), bare=bare, settings=settings) as ready:
        yield ready


@asynccontextmanager
async def hub(
    directory: Path,
    configuration: str,
    *,
    bare: bool = False,
    settings: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    port: int = 0,
) -> AsyncIterator[Hub]:
    """The same with any configuration. An earlier hub of the same directory has ended."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ready.json").unlink(missing_ok=True)
    (directory / "hub.yaml").write_text(configuration)
    given = ["serve", "--config", "hub.yaml", "--ready-file", "ready.json", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in {**OUT_OF_THE_WAY, **(settings or {})}.items():
        given += ["--set", f"{name}={value}"]
    module = "bench.rig.bare" if bare else "kernel"
    with child(module, *given, cwd=directory, env=env) as process:
        ready = await _ready(process, directory / "ready.json")
        headers = {"Authorization": f"Bearer {ready['token']}"}
        async with httpx2.AsyncClient(base_url=ready["url"], headers=headers, timeout=30, trust_env=False) as client:
            yield Hub(process, ready, client)


async def _ready(process: Child, file: Path) -> dict[str, Any]:
    with anyio.move_on_after(PATIENCE):
        while process.alive:
            if file.exists():
                ready: dict[str, Any] = json.loads(file.read_text())
                return ready
            await anyio.sleep(0.05)
    raise RuntimeError(f"the hub did not become ready:\n{process.tail()}")
