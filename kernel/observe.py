"""Hands transitions to exporters, and never slows the story: it drops and counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

import anyio

from kernel.transition import Transition

MOST_PENDING = 10_000


class Teller(Protocol):
    """A compiled broadcast hook."""

    def tell(self, *arguments: object) -> None: ...


class Observer:
    """Tells of each transition in the order of their commits, from a task of its own."""

    def __init__(self, transition: Teller, stage: Teller) -> None:
        self._transition = transition
        self._stage = stage
        self._pending: deque[Transition] = deque()
        self._arrived = anyio.Event()
        self.dropped = 0

    def tell(self, transitions: Iterable[Transition]) -> None:
        for transition in transitions:
            if len(self._pending) >= MOST_PENDING:
                self.dropped += 1
                continue
            self._pending.append(transition)
        self._arrived.set()

    def stage(self, name: str, seconds: float) -> None:
        """One stage of a dispatch took this long: authenticate, route, record, claim, resolve, send, answer, …"""
        self._stage.tell(name, seconds)

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            await self._drain()

    async def _drain(self) -> None:
        while self._pending:
            self._transition.tell(self._pending.popleft())
            if not len(self._pending) % 64:
                await anyio.sleep(0)

    def flush(self) -> None:
        """At the end of a hub's life: tell what is left."""
        while self._pending:
            self._transition.tell(self._pending.popleft())
