"""A flag that is set once, and that can be waited for."""

from __future__ import annotations

import anyio


class Latch:
    """An `anyio.Event` whose event is made when somebody waits: most are set before anybody does, and a call has a
    dozen of them."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def is_set(self) -> bool:
        return self._is_set

    async def wait(self) -> None:
        """Returns at once, without giving way to other tasks, when it is set."""
        if not self._is_set:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
