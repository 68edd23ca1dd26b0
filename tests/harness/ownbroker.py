"""Our own broker program as an operator runs it: `pointsman broker run`, given one or several hubs in an order."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.harness.history import Event, read
from tests.harness.hubclient import Json
from tests.harness.hubprocess import POINTSMAN
from tests.harness.ownhistory import whole
from tests.harness.processes import ROOT, Child
from tests.harness.wiretap import Wiretap


class OwnBroker:
    """One folder, and the process that runs in it now; enter it. `identity` is what `register_broker` gave."""

    def __init__(self, directory: Path, identity: Json, urls: Sequence[str]) -> None:
        self.directory = directory
        self.broker_id = str(identity["broker_id"])
        self.urls = list(urls)
        self.child: Child | None = None
        self.told_to_stop: list[float] = []
        home = directory / "broker"
        home.mkdir(parents=True, mode=0o700)
        known = {"brokerId": self.broker_id, "secret": identity["secret"], "name": directory.name}
        (home / "identity.json").write_text(json.dumps(known))

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        (self.directory / "over").touch()
        if self.child:
            self.child.stop()

    def start(self) -> None:
        """Again, after `kill` or an orderly stop: it keeps its folder."""
        hubs = [part for url in self.urls for part in ("--hub", url)]
        arguments = [str(POINTSMAN), "broker", "run", "--dir", "broker", "--stop-agents", *hubs]
        self.child = Child(arguments, self.directory / "broker.log", cwd=self.directory)

    def kill(self) -> None:
        assert self.child
        self.child.kill()

    async def terminate(self) -> int:
        """TERM; its exit code."""
        assert self.child
        self.told_to_stop.append(time.monotonic())
        self.child.send(signal.SIGTERM)
        return await self.child.ended()

    # -- agents that write down what happens to them

    def command(self, linger: float = 0.0) -> list[str]:
        """Of an agent (`agentprogram`); every fourth of its runs needs `linger` seconds to end."""
        files = (str(ROOT / "tests/harness/agentprogram.py"), *map(str, (self._agents, self.directory / "over")))
        return [sys.executable, "-I", "-S", *files, str(os.getpid()), str(linger)]

    def story(self, wire: Wiretap) -> list[Event]:
        """As that of a scripted broker, from what passed at its doors and what such agents saw."""
        return whole(wire.of(self.broker_id), read(self._agents), self.told_to_stop)

    @property
    def _agents(self) -> Path:
        return self.directory / "agents.jsonl"
