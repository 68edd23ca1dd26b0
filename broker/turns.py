"""One agent, one thing at a time: requests of an agent take their turns in the order in which they came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class Turns:
    def __init__(self) -> None:
        self._locks: dict[str, anyio.Lock] = {}

    @asynccontextmanager
    async def of(self, agent: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(agent, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if self._locks.get(agent) is lock and not lock.locked() and not lock.statistics().tasks_waiting:
                del self._locks[agent]
