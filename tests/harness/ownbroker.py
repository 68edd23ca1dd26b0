"""Our own broker program as an operator runs it: `pointsman broker run`, given one or several hubs in an order."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.harness.hubclient import Json
from tests.harness.hubprocess import POINTSMAN
from tests.harness.processes import Child


class OwnBroker:
    """One folder, and the process that runs in it now; enter it. `identity` is what `register_broker` gave."""

    def __init__(self, directory: Path, identity: Json, urls: Sequence[str]) -> None:
        self.directory = directory
        self.broker_id = str(identity["broker_id"])
        self.urls = list(urls)
        self.child: Child | None = None
        home = directory / "broker"
        home.mkdir(parents=True, mode=0o700)
        known = {"brokerId": self.broker_id, "secret": identity["secret"], "name": directory.name}
        (home / "identity.json").write_text(json.dumps(known))

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
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
        self.child.send(signal.SIGTERM)
        return await self.child.ended()
