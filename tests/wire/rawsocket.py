"""A broker's socket in a test's own hands: signed and upgraded, nothing said yet."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.harness.signing import signed
from tests.harness.sockets import CONNECT_PATH

Frame = dict[str, Any]


def hello(broker_id: str, **more: Any) -> Frame:
    return {"type": "connect", "brokerId": broker_id, "version": "raw", "timestamp": int(time.time()), **more}


class RawSocket:
    """Frames out and in; every wait has a deadline."""

    def __init__(self, ws: ClientConnection, broker_id: str) -> None:
        self.ws = ws
        self.broker_id = broker_id

    async def say(self, frame: Any) -> None:
        await self.ws.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def hear(self, patience: float = 20) -> Any:
        with anyio.fail_after(patience):
            return json.loads(await self.ws.recv())

    async def hear_type(self, wanted: str) -> Frame:
        """The next frame of a type; others are read over."""
        with anyio.fail_after(20):
            while True:
                frame = await self.hear()
                if isinstance(frame, dict) and frame.get("type") == wanted:
                    return frame

    async def greet(self, **more: Any) -> Frame:
        await self.say(hello(self.broker_id, **more))
        frame: Frame = await self.hear()
        assert frame["type"] == "connected", frame
        return frame

    async def end(self, patience: float = 40) -> int | None:
        """The code with which the hub closes; what still arrives is read over."""
        with anyio.fail_after(patience):
            try:
                while True:
                    await self.ws.recv()
            except ConnectionClosed:
                return self.ws.close_code

    async def still_serves(self) -> None:
        """It answers a JSON ping."""
        await self.say({"type": "ping", "timestamp": 4711})
        assert (await self.hear_type("pong"))["type"] == "pong"


@asynccontextmanager
async def raw_socket(url: str, identity: Mapping[str, str], *, max_size: int = 1 << 22) -> AsyncIterator[RawSocket]:
    broker_id, secret = identity["broker_id"], base64.b64decode(identity["secret"])
    with anyio.fail_after(20):
        ws = await connect(
            f"ws://{urlsplit(url).netloc}{CONNECT_PATH}",
            additional_headers=signed(broker_id, secret, "GET", CONNECT_PATH),
            ping_interval=None,
            compression=None,
            proxy=None,
            max_size=max_size,
        )
    try:
        yield RawSocket(ws, broker_id)
    finally:
        ws.transport.abort()
