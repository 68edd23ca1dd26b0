"""A plugin that notes every statement of the writer's connection with its instant, for the count of writes.

The instants are of the clock that all processes of a machine share, so that they can be laid beside a caller's and a
broker's. The file is written when the hub stops.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from kernel import Host, hookimpl

FILE = Path("statements.json")


class Plugin:
    api = 1

    def __init__(self) -> None:
        self._statements: list[tuple[float, str]] = []

    @hookimpl
    async def on_start(self, hub: Host) -> None:
        sql: Any = hub.storage.sql
        await sql.transaction(self._listen)

    def _listen(self, connection: Any) -> None:
        """On the writer's thread, which alone may touch its connection."""
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(lambda statement: self._statements.append((time.monotonic(), statement[:120])))

    @hookimpl
    async def on_stop(self, hub: Host) -> None:
        FILE.write_text(json.dumps(self._statements))
