"""One dispatch id in hand: who asked, and what it was answered."""

from __future__ import annotations

import time
from typing import Protocol

import anyio

from broker.answer import Answer
from broker.calls import Call
from kernel import wire


class Asker(Protocol):
    """The session on which a request came."""

    @property
    def broker_id(self) -> str: ...
    @property
    def secret(self) -> bytes: ...
    @property
    def hub(self) -> str: ...
    def answer(self, request: wire.Request, answer: Answer) -> None: ...
    def accept(self, request: wire.Request) -> None: ...


class Work:
    """Repeats join it, and all are told the same."""

    def __init__(self, dispatch_id: str, epoch: int | None, until: float) -> None:
        self.id = dispatch_id
        self.epoch = epoch
        self.until = until
        self.cancelled = anyio.Event()
        self.begun = False
        self.answer: Answer | None = None
        self.asked: list[tuple[Asker, wire.Request]] = []

    def join(self, asker: Asker, request: wire.Request, call: Call) -> None:
        """A repeat gets the same answer; it may come under a newer epoch and with more time."""
        if self.answer:
            asker.answer(request, self.answer)
            return
        self.asked.append((asker, request))
        if call.epoch is not None:
            self.epoch = max(self.epoch or 0, call.epoch)
        self.until = max(self.until, call.until)
        if self.begun:
            asker.accept(request)

    def begin(self) -> None:
        self.begun = True
        for asker, request in self.asked:
            asker.accept(request)

    def tell(self, answer: Answer) -> None:
        self.answer = answer
        for asker, request in self.asked:
            asker.answer(request, answer)
        self.asked.clear()

    @property
    def remaining(self) -> float:
        """Seconds until its deadline; 0 without one."""
        return 0.0 if self.until == float("inf") else max(0.0, self.until - time.monotonic())
