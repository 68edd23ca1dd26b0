"""Callers that insist: a call that was not acknowledged is made again, with the same key, at the next live hub."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import httpx2

from tests.harness.cluster import Cluster
from tests.harness.hubclient import Answered, HubClient

PAUSE = 0.02
"""Seconds between two calls of one caller, and until it tries again."""
ACKNOWLEDGED_WITHIN = 60.0
"""Seconds from the first try of a call; one that takes longer fails."""
Ask = Callable[[HubClient, str, int, str], Awaitable[Answered]]
"""Of (hub, agent, number, key): makes an agent's call of this number."""


class Callers:
    """One for each agent. 503 is no acknowledgement, nor is a broken connection."""

    def __init__(self, cluster: Cluster, ask: Ask) -> None:
        self._cluster = cluster
        self._ask = ask
        self._over = anyio.Event()
        self.told: dict[str, str] = {}
        """Acknowledged dispatch → its agent."""
        self.times: list[float] = []
        """Seconds from the first try of each call to its acknowledgement."""
        self.repeated = 0

    @asynccontextmanager
    async def on(self, agents: Sequence[str]) -> AsyncIterator[None]:
        """They call during the block; at its end every call has been acknowledged."""
        async with anyio.create_task_group() as callers:
            for agent in agents:
                callers.start_soon(self._call, agent)
            yield
            self._over.set()

    async def _call(self, agent: str) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            began = time.monotonic()
            with anyio.fail_after(ACKNOWLEDGED_WITHIN):
                while not await self._acknowledged(agent, number):
                    self.repeated += 1
                    await anyio.sleep(PAUSE)
            self.times.append(time.monotonic() - began)
            await anyio.sleep(PAUSE)

    async def _acknowledged(self, agent: str, number: int) -> bool:
        alive = self._cluster.alive
        api = alive[(number + self.repeated) % len(alive)].api
        try:
            answer = await self._ask(api, agent, number, f"{agent}-{number}")
        except (httpx2.HTTPError, RuntimeError):
            return False
        if answer.status == 503:
            return False
        assert answer.status < 300, answer
        self.told[answer.dispatch] = agent
        return True
