"""How many requests one broker has in flight."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kernel.intent import Lane
from kernel.latch import Latch


class Window:
    """Places for requests in flight. Control goes before messages when both wait."""

    def __init__(self, size: int) -> None:
        self._free = self.size = size
        self._control: list[tuple[int, Latch]] = []
        self._messages: list[tuple[int, Latch]] = []

    @asynccontextmanager
    async def place(self, lane: Lane, *, alone: bool = False) -> AsyncIterator[None]:
        places = self.size if alone else 1
        if places <= self._free and not self._control and not self._messages:
            self._free -= places
        else:
            await self._take(self._control if lane is Lane.CONTROL else self._messages, places)
        try:
            yield
        finally:
            self._free += places
            self._admit()

    async def _take(self, queue: list[tuple[int, Latch]], places: int) -> None:
        ticket = (places, Latch())
        queue.append(ticket)
        self._admit()
        try:
            await ticket[1].wait()
        except BaseException:
            self._give_up(queue, ticket)
            raise

    def _give_up(self, queue: list[tuple[int, Latch]], ticket: tuple[int, Latch]) -> None:
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
