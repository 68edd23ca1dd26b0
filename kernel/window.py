"""How many requests one broker has in flight."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from kernel.intent import Lane


class Window:
    """Places for requests in flight. Control goes before messages when both wait."""

    def __init__(self, size: int) -> None:
        self._free = self.size = size
        self._control: list[tuple[int, anyio.Event]] = []
        self._messages: list[tuple[int, anyio.Event]] = []

    @asynccontextmanager
    async def place(self, lane: Lane, *, alone: bool = False) -> AsyncIterator[None]:
        places = self.size if alone else 1
        await self._take(self._control if lane is Lane.CONTROL else self._messages, places)
        try:
            yield
        finally:
            self._free += places
            self._admit()

    async def _take(self, queue: list[tuple[int, anyio.Event]], places: int) -> None:
        ticket = (places, anyio.Event())
        queue.append(ticket)
        self._admit()
        try:
            await ticket[1].wait()
        except BaseException:
            self._give_up(queue, ticket)
            raise

    def _give_up(self, queue: list[tuple[int, anyio.Event]], ticket: tuple[int, anyio.Event]) -> None:
        if ticket[1].is_set():
            self._free += ticket[0]
        else:
            queue.remove(ticket)
        self._admit()

    def _admit(self) -> None:
        for queue in (self._control, self._messages):
            while queue and queue[0][0] <= self._free:
                places, admitted = queue.pop(0)
                self._free -= places
                admitted.set()
            if queue:
                return
