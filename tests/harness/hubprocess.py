"""A hub as an operator runs it: `pointsman serve` in a directory of its own, started, killed and started again."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.harness.history import History
from tests.harness.hubclient import HubClient
from tests.harness.processes import Child, eventually, shown_on_failure

POINTSMAN = Path(sys.executable).with_name("pointsman")
CONFIG = """\
plugins:
  - use: sqlite
    config: {path: hub.db}
  - use: routes.local
  - use: routes.forward
  - use: routes.direct
  - use: routes.hold
  - use: routes.refuse
  - use: environment.static
  - use: metrics.prometheus
  - use: auth.brokers
  - use: auth.agents
  - use: auth.dev
"""
SHORT = {
    "dispatch.http_wait": "3s",
    "dispatch.rolling_window": "5s",
    "dispatch.deadline": "60s",
    "dispatch.reconnect_grace": "1s",
    "channel.handshake": "3s",
    "channel.ping": "1s",
    "channel.dead_after": "4s",
    "channel.renew": "2s",
    "channel.stale_after": "8s",
    "sweep.stuck": "1s",
    "sweep.messages": "1s",
    "sweep.nodes": "1s",
}
"""Settings under which a story takes seconds; the order that the hub checks at start is kept."""


class HubEnded(AssertionError):
    """The hub's process ended when it should have become ready."""


class HubProcess:
    """One directory with configuration and database, and the process that serves it now."""

    def __init__(
        self,
        directory: Path,
        *,
        settings: dict[str, str] | None = None,
        config: str = CONFIG,
        env: Mapping[str, str] | None = None,
        history: History | None = None,
        name: str = "",
    ) -> None:
        """`history` is that of several hubs, each of which then has a `name` in it."""
        self.directory = directory
        self.settings = {**SHORT, **(settings or {})}
        self.config = config
        self.env = dict(env or {})
        self.name = name
        self.clock_off_by = 0
        """Seconds, from its next start on."""
        self.does_not_know = ""
        """An operation that came with a later version than it runs, from its next start on."""
        self.child: Child | None = None
        self.ready: dict[str, Any] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self.history = history or History(directory / "calls.jsonl")
        self._shared = history is not None
        self.client: HubClient | None = None

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def api(self) -> HubClient:
        assert self.client, "the hub was never started"
        return self.client

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind and self.child:
            print(f"--- {self.child.log}\n{self.child.tail()}", file=sys.stderr)
        if self.client:
            await self.client.close()
        if self.child:
            self.child.stop(patience=15)
        if not self._shared:
            self.history.close()

    def arguments(self, port: int) -> list[str]:
        (self.directory / "hub.yaml").write_text(self.config)
        chosen = [part for name, value in self.settings.items() for part in ("--set", f"{name}={value}")]
        file = ["--config", "hub.yaml", "--ready-file", "ready.json"]
        program = [str(POINTSMAN)]
        if self.clock_off_by:
            program = [sys.executable, "-m", "tests.harness.skewed", str(self.clock_off_by)]
        if self.does_not_know:
            program = [sys.executable, "-m", "tests.harness.older", self.does_not_know]
        return [*program, "serve", *file, "--host", "127.0.0.1", "--port", str(port), *chosen]

    async def start(self, *, port: int = 0, patience: float = 60.0) -> None:
        """Serves from now on; a restart keeps its port when `port` names it. Raises: HubEnded, Late."""
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        with shown_on_failure(lambda: self.child):
            log = self.directory / "hub.log"
            child = self.child = Child(self.arguments(port), log, cwd=self.directory, env=self.env)

            async def told() -> dict[str, Any] | None:
                if not child.alive:
                    raise HubEnded(f"exit {child.exit_code} before it was ready")
                return json.loads(ready.read_text()) if ready.exists() else None

            self.ready = await eventually(told, "hub ready", patience=patience, every=0.02)
        if self.client is None:
            self.client = HubClient(self.url, self.ready["token"], self.history, hub=self.name)
        else:
            self.client.move(self.url, self.ready["token"])
        self.record("hub_ready", pid_of_hub=self.ready["pid"])

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def node(self) -> str:
        return str(self.ready["nodeId"])

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive

    def record(self, what: str, **more: Any) -> None:
        self.history.write(what, node=self.node, **({"hub": self.name} if self.name else {}), **more)

    def kill(self) -> None:
        """`kill -9`."""
        assert self.child
        self.record("hub_killed")
        self.child.kill()

    def freeze(self) -> None:
        """Stands still with all its sockets open, until `thaw`."""
        assert self.child
        self.record("hub_frozen")
        self.child.freeze()

    def thaw(self) -> None:
        assert self.child
        self.record("hub_thawed")
        self.child.thaw()

    async def terminate(self, patience: float = 30.0) -> int:
        """TERM; its exit code."""
        assert self.child
        self.record("hub_stopped")
        self.child.send(signal.SIGTERM)
        return await self.child.ended(patience)

    async def restart(self) -> None:
        """The hub anew on the same directory and port; the old process must have ended."""
        assert self.child, "never started"
        assert not self.child.alive, "the old hub still runs"
        await self.start(port=self.port)

    @property
    def log(self) -> str:
        return (self.directory / "hub.log").read_text(errors="replace")
