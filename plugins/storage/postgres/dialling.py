"""How the bus's two connections are opened, closed, and opened again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal

import anyio

from kernel import Clock, StorageUnavailable
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.faults import FAULTS

Role = Literal["listen", "signal"]
Connect = Callable[[Role], Awaitable[Connection]]
"""Opens a fresh connection to a server that takes writes, within a deadline of its own. Raises: StorageUnavailable."""
FAILURES = (*FAULTS, StorageUnavailable)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two connections."""
GOODBYE = 1.0
"""Seconds for an orderly end."""


class Backoff:
    """How long to wait before the next connection: a little, then longer, never in step with others."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pause = FIRST_PAUSE

    def next(self) -> float:
        """Seconds to wait now; the next time it is twice as long."""
        pause, self._pause = self._pause, min(LONGEST_PAUSE, self._pause * 2)
        return self._clock.jitter(pause)

    def reset(self) -> None:
        """The connection proved to be of use: that it could be opened proves nothing."""
        self._pause = FIRST_PAUSE


@asynccontextmanager
async def dialled(connect: Connect, role: Role) -> AsyncIterator[Connection]:
    """Ended in order when the hub stops; dropped after a failure, since a frozen server answers no goodbye.

    Raises: one of `FAILURES`.
    """
    connection = await connect(role)
    try:
        yield connection
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True), suppress(*FAILURES):
            await connection.close(timeout=GOODBYE)
        raise
    finally:
        connection.terminate()
