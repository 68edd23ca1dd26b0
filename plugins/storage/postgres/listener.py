"""Keeps the one LISTEN connection of a node: outside every pool, asked nothing, opened again whenever it is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from kernel import Clock
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.dialling import FAILURES, Backoff, Connect, dialled
from plugins.storage.postgres.faults import why

DEADLINE = 2.0
"""Seconds for one LISTEN."""
ENDED = "the server ended the connection"


class Listener:
    """Connect to a server that takes writes, LISTEN, and only then say so. Whoever looks at the rows after that misses
    nothing; whoever looked before has missed what was signalled in between."""

    def __init__(
        self,
        connect: Connect,
        channels: tuple[str, ...],
        clock: Clock,
        *,
        heard: Callable[[str], None],
        listening: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        """`heard` gets each payload and must neither wait nor raise; `lost` is told why, if not by `reopen`."""
        self._connect = connect
        self._channels = channels
        self._heard = heard
        self._listening = listening
        self._lost = lost
        self._backoff = Backoff(clock)
        self._over = anyio.Event()
        self._why = ""
        self.up = False
        self.connections = 0

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            self._over, self._why = anyio.Event(), ""
            try:
                async with dialled(self._connect, "listen") as connection:
                    await self._listen(connection)
                    await self._over.wait()
            except FAILURES as fault:
                self._why = why(fault)
            finally:
                self.up = False
            self._lost(self._why)
            await anyio.sleep(self._backoff.next())

    def proved(self) -> None:
        """Something was heard: the next time it is lost it is opened again at once."""
        self._backoff.reset()

    def reopen(self) -> None:
        """It hears nothing: a new connection may."""
        if self.up:
            self._over.set()

    async def _listen(self, connection: Connection) -> None:
        connection.add_termination_listener(self._ended)
        with anyio.fail_after(DEADLINE):
            for channel in self._channels:
                await connection.add_listener(channel, self._take)
        self.up = True
        self.connections += 1
        self._listening()

    def _take(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        self._heard(str(payload))

    def _ended(self, connection: Any) -> None:
        self._why = ENDED
        self._over.set()
