"""A hub whose measured routes do nothing: `python -m bench.rig.bare serve …`, the floor of what the hub itself does.

Server, framework, front, gate, authentication, authorisation, limits and the reading of the body are the hub's own;
only what comes after them is left out. A socket is let in as the hub lets it in, and then only read.
"""

from __future__ import annotations

from unittest.mock import patch

from falcon.asgi import WebSocket

from kernel.__main__ import main
from kernel.api import app
from kernel.api.connect import Connect, Upgraded
from kernel.api.exchange import Asked, Responded
from kernel.api.lifecycle import Lifecycle, Start
from kernel.api.messages import Messages, NewMessage, Waits
from kernel.api.protocols import SOCKET
from kernel.api.routes import route
from kernel.link import Closed

ID = "00000000-0000-7000-8000-000000000000"
ANSWER = b'{"id":"' + ID.encode() + b'","phase":"running"' + b" " * 600 + b"}"
"""About as long as an agent."""


def _answer(resp: Responded, status: int) -> None:
    resp.status = status
    resp.set_header("X-Dispatch-Id", ID)
    resp.content_type = "application/json"
    resp.data = ANSWER


class BareLifecycle(Lifecycle):
    @route(action="agent.start", access="user", body=Start)
    async def on_post_start(self, req: Asked, resp: Responded, agent: str, body: Start, project: str = "") -> None:
        _answer(resp, 200)


class BareMessages(Messages):
    @route(action="agent.message", access="user", body=NewMessage, query=Waits)
    async def on_post(
        self, req: Asked, resp: Responded, agent: str, body: NewMessage, query: Waits, project: str = ""
    ) -> None:
        _answer(resp, 202)


class BareConnect(Connect):
    @route(action="broker.connect", access="broker", guard="upgrades")
    async def on_websocket(self, req: Asked, ws: WebSocket) -> None:
        await ws.accept()
        socket = Upgraded(ws, req.scope["extensions"][SOCKET])
        await socket.send('{"type":"connected"}')
        try:
            while True:
                await socket.receive()
        except Closed:
            return


if __name__ == "__main__":
    with (
        patch.object(app, "Lifecycle", BareLifecycle),
        patch.object(app, "Messages", BareMessages),
        patch.object(app, "Connect", BareConnect),
    ):
        main()
