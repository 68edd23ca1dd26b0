"""A broker of its own process that answers every request at once: `python -m bench.rig.answering`.

It is asked over standard input, one JSON value a line, and ends with it: first `{url, id, secret}` of the broker that
it is; then "arrived" gives `{dispatch id: when its frame came}` since the last time.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop
from websockets.asyncio.client import ClientConnection, connect

from kernel import wire

RUNS = base64.b64encode(b'{"agent":{"phase":"running"},"phase":"running"}').decode()


class Asked(msgspec.Struct, tag_field="type", tag="request", rename="camel"):
    """What of a request is looked at."""

    request_id: str
    headers: dict[str, str]


class Other(msgspec.Struct, tag_field="type", tag="cancel"):
    """Nothing that is answered."""


_one = msgspec.json.Decoder(Asked | Other)
_many = msgspec.json.Decoder(list[Asked | Other])


class Answering:
    def __init__(self) -> None:
        self.arrived: dict[str, float] = {}

    def answers(self, text: str) -> str:
        """The answers to all requests of one message."""
        now = time.monotonic()
        frames = _many.decode(text) if text[:1] == "[" else [_one.decode(text)]
        answers = [self._answer(frame, now) for frame in frames if isinstance(frame, Asked)]
        return answers[0] if len(answers) == 1 else f"[{','.join(answers)}]"

    def _answer(self, asked: Asked, now: float) -> str:
        self.arrived.setdefault(asked.headers[wire.DISPATCH_ID], now)
        return f'{{"type":"response","requestId":"{asked.request_id}","statusCode":200,"body":"{RUNS}"}}'

    async def serve(self, socket: ClientConnection) -> None:
        async for text in socket:
            assert isinstance(text, str)
            if answers := self.answers(text):
                await socket.send(answers)


async def dial(url: str, broker_id: str, secret: bytes) -> ClientConnection:
    """A socket that the hub has answered with its first frame."""
    headers = wire.signed_headers(broker_id, secret, "GET", wire.CONNECT_PATH, now=int(time.time()))
    target = f"ws://{urlsplit(url).netloc}{wire.CONNECT_PATH}"
    socket = await connect(
        target, additional_headers=headers, compression=None, ping_interval=None, max_queue=None, proxy=None
    )
    hello = wire.Connect(broker_id=broker_id, version="bench", capabilities=list(wire.CAPABILITIES), window=64)
    await socket.send(wire.encode(hello))
    await socket.recv()
    return socket


async def main() -> None:
    loop = asyncio.get_running_loop()
    line = await loop.run_in_executor(None, sys.stdin.readline)
    identity: dict[str, Any] = json.loads(line)
    socket = await dial(identity["url"], identity["id"], base64.b64decode(identity["secret"]))
    answering = Answering()
    serving = asyncio.create_task(answering.serve(socket))
    print(json.dumps("connected"), flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        arrived, answering.arrived = answering.arrived, {}
        print(json.dumps(arrived), flush=True)
    serving.cancel()
    await socket.close()


if __name__ == "__main__":
    uvloop.run(main())
