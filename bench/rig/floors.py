"""What no cross-hub call can do without, measured beside it: PostgreSQL's part, an HTTP and a WebSocket round trip."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from websockets.asyncio.client import connect

from bench.rig import pingpong
from bench.rig.caller import Calls, closed_loop, request
from bench.rig.children import PATIENCE, Child, child

ASKED = b'{"message":"' + b"x" * 100 + b'"}'
ANSWER = "y" * 200
"""About as long as a broker's answer."""


class Floors:
    """Enter `floors` to get them. Times are in seconds."""

    def __init__(self, dsn: str, port: int, echo: Child) -> None:
        self._dsn = dsn
        self._port = port
        self.echo = echo

    async def http(self, callers: int, seconds: float) -> Calls:
        return await closed_loop(("127.0.0.1", self._port), [request("/echo", "-", ASKED)] * callers, seconds)

    async def socket(self, seconds: float) -> list[float]:
        """A frame there and back, one at a time, over the broker's library and settings."""
        times: list[float] = []
        url = f"ws://127.0.0.1:{self._port}/echo"
        async with connect(url, compression=None, ping_interval=None, max_queue=None, proxy=None) as socket:
            until = time.perf_counter() + seconds
            while (before := time.perf_counter()) < until:
                await socket.send(ANSWER)
                await socket.recv()
                times.append(time.perf_counter() - before)
        return times

    async def database(self, seconds: float) -> list[pingpong.Trip]:
        """Three commits and two NOTIFYs, one after the other."""
        return await pingpong.there_and_back(self._dsn, seconds)

    async def commit(self, seconds: float) -> list[float]:
        """One durable row, one after the other."""
        return await pingpong.inserted(self._dsn, seconds)


@asynccontextmanager
async def floors(directory: Path, dsn: str) -> AsyncIterator[Floors]:
    """On the server that the hubs use, in processes of their own."""
    ready = directory / "echo.json"
    with (
        child("bench.rig.echo", ready.name, cwd=directory) as echo,
        child("bench.rig.pingpong", dsn, cwd=directory, asked=True) as owner,
    ):
        await owner.ask("ready?")
        with anyio.fail_after(PATIENCE):
            while not ready.exists():
                await anyio.sleep(0.02)
            port = int(json.loads(ready.read_text())["port"])
            while not await _open(port):
                await anyio.sleep(0.02)
        yield Floors(dsn, port, echo)


async def _open(port: int) -> bool:
    try:
        async with await anyio.connect_tcp("127.0.0.1", port):
            return True
    except OSError:
        return False
