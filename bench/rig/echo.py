"""The least that HTTP and WebSocket cost a hub: falcon on uvicorn, a route that answers JSON with JSON, a socket that
answers each text: `python -m bench.rig.echo READY_FILE`. Server and framework are set as the hub sets its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import falcon.asgi
import msgspec
import uvicorn

FRAME = "x" * 1_300
"""About as long as the request of a start."""


class Echo:
    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        value = msgspec.json.decode(await req.stream.read())
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode(value)

    async def on_websocket(self, req: falcon.asgi.Request, ws: falcon.asgi.WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.receive_text()
                await ws.send_text(FRAME)
        except falcon.WebSocketDisconnected:
            return


def main() -> None:
    app: Any = falcon.asgi.App()
    app.ws_options.max_receive_queue = 0
    app.add_route("/echo", Echo())
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="websockets-sansio",
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws_per_message_deflate=False,
    )
    listening = config.bind_socket()
    ready = {"port": listening.getsockname()[1], "pid": os.getpid()}
    made = Path(f"{sys.argv[1]}.new")
    made.write_text(json.dumps(ready))
    made.rename(sys.argv[1])
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
