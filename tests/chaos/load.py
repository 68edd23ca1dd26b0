"""Callers that never rest: start, stop, restart and messages through random hubs, with keys and without."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2

from tests.chaos.world import World
from tests.harness.hubclient import Answered

OPS = ("start", "stop", "restart", "message", "message", "message", "message")
PATIENCE = 12.0
"""Seconds after which a caller hangs up on a hub that does not answer: it may be frozen."""
DEADLINE = "45"
FINAL = frozenset({200, 202, 409, 502, 504})


class Load:
    """`done` counts the calls that were answered for good."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.over = anyio.Event()
        self.done = 0

    async def run(self) -> None:
        """One caller for each agent, until `over`; what is under way then is brought to its answer."""
        async with anyio.create_task_group() as callers:
            for agent in self.world.agents:
                callers.start_soon(self._call_on, agent, random.Random(self.world.chance.random()))

    async def _call_on(self, agent: str, chance: random.Random) -> None:
        n = 0
        while not self.over.is_set():
            n += 1
            op = chance.choice(OPS)
            if op == "message" or chance.random() < 0.6:
                await self._insist(agent, op, n, chance)
            else:
                await self._ask_once(agent, op, chance)
            await anyio.sleep(chance.uniform(0.02, 0.25))

    async def _insist(self, agent: str, op: str, n: int, chance: random.Random) -> None:
        """One call with one key, told to one hub after the other until one of them gave its answer."""
        key = str(uuid.uuid4())
        waiting = chance.random() < 0.4
        while True:
            answer = await self._call(agent, op, n, chance, key=key, waiting=waiting)
            if answer and final(answer):
                self.done += 1
                return
            await anyio.sleep(0.15)

    async def _ask_once(self, agent: str, op: str, chance: random.Random) -> None:
        """Without a key: who gets no answer does not know, and does not repeat it."""
        if await self._call(agent, op, 0, chance, key=None, waiting=True):
            self.done += 1

    async def _call(
        self, agent: str, op: str, n: int, chance: random.Random, *, key: str | None, waiting: bool
    ) -> Answered | None:
        hub = self.world.cluster.any(chance) if self.world.cluster.alive else None
        if hub is None or hub.client is None:
            return None
        named: Any = {"idempotency_key": key} if key else {}
        with anyio.move_on_after(PATIENCE), contextlib.suppress(httpx2.HTTPError, RuntimeError):
            if op == "message":
                return allowed(await hub.api.message(agent, f"m{n}", **named))
            prefer = "wait=5" if waiting else "respond-async, deliver=hold"
            return allowed(await hub.api.do(op, agent, prefer=prefer, x_dispatch_deadline=DEADLINE, **named))
        return None


def allowed(answer: Answered) -> Answered:
    """What a hub in trouble may say; anything else is a fault of its own."""
    assert answer.status in {*FINAL, 429, 503}, f"{answer.status} {answer.text[:500]}"
    return answer


def final(answer: Answered) -> bool:
    """Told once, it is told the same again: the caller need not insist. A 503 without an intent may be tried again."""
    return answer.status in FINAL or (answer.status == 503 and "x-dispatch-id" in answer.headers)


@asynccontextmanager
async def under_load(world: World) -> AsyncIterator[Load]:
    """The load runs while the block does; after it every caller has its answer."""
    load = Load(world)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load.run)
        yield load
        load.over.set()
