"""Hands transitions, stages and requests to exporters, and never slows the story: it drops and counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

import anyio

from kernel.latch import Latch
from kernel.transition import Transition

MOST_PENDING = 50_000
MOST_MEASURES = 10_000
"""What stages and requests took is dropped long before a transition is: of those each one counts."""
MEASURES_WAIT = 1.0
"""Seconds, unless there are many."""
MANY = 256


class Teller(Protocol):
    """A compiled broadcast hook."""

    def tell(self, *arguments: object) -> None: ...


class Observer:
    """Tells of them from a task of its own, transitions in the order of their commits: an answer does not wait for who
    counts it."""

    def __init__(self, transition: Teller, stage: Teller, request: Teller) -> None:
        self._transition = transition
        self._stage = stage
        self._request = request
        self._pending: deque[tuple[Teller, tuple[object, ...]]] = deque()
        self._arrived = Latch()
        self.dropped = 0
        """What no exporter was told of."""

    def tell(self, transitions: Iterable[Transition]) -> None:
        for transition in transitions:
            self._put(MOST_PENDING, self._transition, transition)
            self._arrived.set()

    def stage(self, name: str, seconds: float) -> None:
        """One stage of a dispatch took this long: authenticate, route, record, claim, resolve, send, answer, …"""
        self._put(MOST_MEASURES, self._stage, name, seconds)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request was answered; `route` is its template."""
        self._put(MOST_MEASURES, self._request, route, method, status, seconds)

    def _put(self, most: int, teller: Teller, *arguments: object) -> None:
        if len(self._pending) >= most:
            self.dropped += 1
            return
        self._pending.append((teller, arguments))
        if len(self._pending) >= MANY:
            self._arrived.set()

    async def run(self) -> None:
        """Measures go along with the next transition, when there are many, or after a second."""
        while True:
            with anyio.move_on_after(MEASURES_WAIT):
                await self._arrived.wait()
            self._arrived = Latch()
            await self._drain()

    async def _drain(self) -> None:
        while self._pending:
            self._tell_next()
            if self._pending and not len(self._pending) % 64:
                await anyio.sleep(0)

    def flush(self) -> None:
        """Tell what is left: somebody looks at the numbers, or the hub ends."""
        while self._pending:
            self._tell_next()

    def _tell_next(self) -> None:
        teller, arguments = self._pending.popleft()
        teller.tell(*arguments)
