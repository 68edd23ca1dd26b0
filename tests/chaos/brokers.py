"""Brokers that storms break: scripted ones, and our own program as an operator runs it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from tests.harness.brokerprocess import BrokerProcess
from tests.harness.history import Event
from tests.harness.hubclient import Json
from tests.harness.ownbroker import OwnBroker
from tests.harness.processes import Child, eventually
from tests.harness.proxy import Proxy
from tests.harness.wiretap import Wiretap

BACKOFF = 90.0
"""Seconds in which our broker surely has a session again: after many losses it pauses for up to half a minute."""


class Freezes:
    """A process that stands still as long as it is told to."""

    child: Child | None

    def freeze(self) -> None:
        assert self.child
        self.child.freeze()

    def thaw(self) -> None:
        assert self.child
        self.child.thaw()


class Scripted(Freezes, BrokerProcess):
    """Slow at its first restarts, a little slow at everything."""

    @property
    def dedupes(self) -> bool:
        return bool(self.settings.get("personality", "ours") == "ours")

    def agent(self) -> dict[str, Any]:
        """What a new agent of it is given."""
        return {}

    async def be_slow(self, seconds: float) -> None:
        await self.rule(op="restart", times=2, delay=seconds, accepted=True)
        await self.rule(delay=0.05)

    async def again(self) -> None:
        await self.restart()
        await self.rule(delay=0.05)

    async def leave(self) -> None:
        """In order: it says good-bye, and is there no more."""
        await self.disconnect()
        await self.stop()

    async def flap(self, doors: Sequence[Proxy], chance: random.Random) -> None:
        """From hub to hub, each new socket before the old one ends."""
        for _ in range(4):
            await self.tell("dial", url=chance.choice(doors).url)


class Own(Freezes, OwnBroker):
    """Its agents are programs that write down what they see; the wiretap hears what passes at its doors."""

    dedupes = True

    def __init__(
        self, directory: Path, identity: Json, urls: Sequence[str], *, wiretap: Wiretap, linger: float
    ) -> None:
        super().__init__(directory, identity, urls)
        self._wiretap = wiretap
        self._linger = linger
        self._began = 0.0

    def start(self) -> None:
        self._began = time.monotonic()
        super().start()

    def agent(self) -> dict[str, Any]:
        return {"config": {"command": self.command(self._linger)}}

    async def again(self) -> None:
        self.start()

    async def leave(self) -> None:
        """Its agents first, then its socket; as soon as it is at work, for a program that only begins just dies."""

        async def at_work() -> bool:
            heard = self._wiretap.of(self.broker_id)
            return any(event["what"] == "connected" and event["t"] > self._began for event in heard)

        await eventually(at_work, "our broker's session", patience=BACKOFF)
        assert await self.terminate() == 0

    async def flap(self, doors: Sequence[Proxy], chance: random.Random) -> None:
        """It loses its socket again and again, also while it dials the next."""
        for _ in range(4):
            for door in doors:
                door.cut()
            await anyio.sleep(chance.uniform(0.1, 0.6))

    def history(self) -> list[Event]:
        return self.story(self._wiretap)


Broker = Scripted | Own
