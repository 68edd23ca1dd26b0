"""Brokers that connect and then say nothing: `python -m bench.rig.idling`.

Asked over standard input, one JSON value a line, and ends with it: `{url, identities: [{id, secret}, …]}` connects
them and answers how many; they stay until the end.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

import uvloop
from websockets.asyncio.client import ClientConnection

from bench.rig.answering import dial

AT_ONCE = 20


async def main() -> None:
    loop = asyncio.get_running_loop()
    held: list[ClientConnection] = []
    room = asyncio.Semaphore(AT_ONCE)

    async def connect(url: str, identity: dict[str, str]) -> None:
        async with room:
            held.append(await dial(url, identity["id"], base64.b64decode(identity["secret"])))

    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked: dict[str, Any] = json.loads(line)
        await asyncio.gather(*(connect(asked["url"], identity) for identity in asked["identities"]))
        print(json.dumps(len(held)), flush=True)
    for socket in held:
        socket.transport.abort()


if __name__ == "__main__":
    uvloop.run(main())
