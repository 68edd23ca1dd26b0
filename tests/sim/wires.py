"""A socket between a hub and a broker, both of whose ends are in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import anyio

from kernel import wire
from kernel.clock import SYSTEM
from kernel.link import Closed
from kernel.node import NodeId

ON_THE_WAY = 0.001
"""Seconds that a frame takes."""


class End:
    """What came to one end and was not read yet."""

    def __init__(self) -> None:
        self.frames: list[str] = []
        self.moved = anyio.Event()

    def put(self, text: str) -> None:
        self.frames.append(text)
        self.moved.set()

    async def wait(self) -> None:
        self.moved = anyio.Event()
        await self.moved.wait()


class Wire:
    """The hub's half is `kernel.link.Socket`; `say` and `frames` are the broker's."""

    def __init__(self, node_id: NodeId, chance: random.Random, closed: Callable[[Wire], None]) -> None:
        self.node_id = node_id
        self.code: int | None = None
        self.dead = False
        """Nothing comes through any more, and neither end is told."""
        self.connected = anyio.Event()
        self.advised = anyio.Event()
        self._chance = chance
        self._closed = closed
        self._up, self._down = End(), End()
        self._heard_at = SYSTEM.monotonic()

    def end(self, code: int) -> None:
        if self.code is None:
            self.code = code
            self._up.moved.set()
            self._down.moved.set()
            self._closed(self)

    # -- the hub's half ------------------------------------------------------------------------------------------

    async def receive(self) -> str:
        while not self._up.frames:
            if self.code is not None:
                raise Closed(self.code)
            await self._up.wait()
        return self._up.frames.pop(0)

    async def send(self, text: str) -> None:
        if self._chance.random() < 0.2:
            await anyio.sleep(self._chance.random() ** 3 * 0.01)
        if self.code is not None:
            raise Closed(self.code)
        if not self.dead:
            asyncio.get_running_loop().call_later(ON_THE_WAY, self._down.put, text)

    async def close(self, code: int, reason: str) -> None:
        await anyio.sleep(ON_THE_WAY)
        self.end(code)

    def abort(self) -> None:
        self.end(1006)

    def heard_at(self) -> float:
        if not self.dead and self.code is None:
            self._heard_at = SYSTEM.monotonic()
        return self._heard_at

    # -- the broker's half ---------------------------------------------------------------------------------------

    def say(self, frame: wire.Frame) -> None:
        if self.code is None and not self.dead:
            asyncio.get_running_loop().call_later(ON_THE_WAY, self._up.put, wire.encode(frame))

    async def frames(self) -> AsyncIterator[wire.Frame]:
        """Until the socket is gone."""
        while True:
            while not self._down.frames:
                if self.code is not None:
                    return
                await self._down.wait()
            text = self._down.frames.pop(0)
            if not self.dead:
                for frame in wire.decode_from_hub(text, batch=True):
                    yield frame
