"""One scripted hub and one real broker for each test; `sharing` has those of a whole module."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.keep import STATE
from broker.keeping.child import started_at
from tests.broker.fakehub import BROKER_ID, SECRET, FakeHub, fake_hub
from tests.harness.processes import ROOT, Child


class BrokerProcess:
    """A broker that can be killed and run again in the same folder."""

    def __init__(self, folder: Path, hub: FakeHub) -> None:
        self.folder = folder
        self.dir = folder / "broker"
        self.hub = hub
        self.child: Child | None = None
        self.settings: dict[str, Any] = {
            "dir": str(self.dir),
            "hubs": [hub.url],
            "backoff": 0.05,
            "backoff_most": 0.2,
            "first_progress": 0.2,
            "progress": 0.2,
            "message_wait": 0.4,
        }
        self.dir.mkdir(mode=0o700)
        identity = {"brokerId": BROKER_ID, "secret": base64.b64encode(SECRET).decode(), "name": "test"}
        (self.dir / "identity.json").write_text(json.dumps(identity))

    def run(self, env: dict[str, str] | None = None, **settings: Any) -> None:
        assert self.child is None or not self.child.alive
        arguments = [sys.executable, "-m", "tests.broker.runner", json.dumps({**self.settings, **settings})]
        self.child = Child(arguments, self.folder / "broker.log", cwd=ROOT, env=env)

    @property
    def process(self) -> Child:
        assert self.child is not None
        return self.child

    async def begin(self, env: dict[str, str] | None = None, **settings: Any) -> None:
        """Run it, and wait for its next socket."""
        n = len(self.hub.lines)
        self.run(env, **settings)
        await self.hub.line(n)

    def kill(self) -> None:
        self.process.kill()

    async def stop(self) -> int:
        """An orderly stop; its exit code."""
        self.process.send(signal.SIGTERM)
        return await self.process.ended()

    async def again(self, **settings: Any) -> None:
        """`kill -9`, and the next one in the same folder."""
        if self.process.alive:
            self.kill()
        await self.begin(**settings)

    def state(self, agent_id: str) -> dict[str, Any]:
        """The state file of the agent's only run."""
        [run] = (self.dir / "agents" / agent_id / "runs").iterdir()
        found: dict[str, Any] = json.loads((run / STATE).read_text())
        return found

    def sweep(self) -> None:
        """Kill what the test left: agents first, so that keepers still write their end."""
        if self.child:
            if self.child.alive:
                self.child.kill()
            if sys.exc_info()[0] is None:
                print(self.child.tail(), file=sys.stderr)
        for kind in ("agent", "keeper"):
            for state in self.dir.glob(f"agents/*/runs/*/{STATE}"):
                who = json.loads(state.read_text())[kind]
                if who and started_at(who["pid"]) == who["start"]:
                    with contextlib.suppress(ProcessLookupError):  # it ended of itself since
                        os.kill(who["pid"], signal.SIGKILL)
            time.sleep(0.01)


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as made:
        yield made


@pytest.fixture
def idle_broker(tmp_path: Path, hub: FakeHub) -> Iterator[BrokerProcess]:
    """A broker that is not running yet."""
    process = BrokerProcess(tmp_path, hub)
    yield process
    process.sweep()


@pytest.fixture
async def broker(idle_broker: BrokerProcess) -> BrokerProcess:
    await idle_broker.begin()
    return idle_broker
