"""A hub whose measured routes do nothing: `python -m bench.rig.bare serve …`, the floor of what the hub itself does.

Server, framework, front, gate, authentication, authorisation, limits and the reading of the body are the hub's own;
only what comes after them is left out. A socket is let in as the hub lets it in, and then only read. `…/start`
answers at once; `…/stop` sends one frame through the socket that came last, and answers when its answer is there.
"""

from __future__ import annotations

import asyncio
import itertools
from unittest.mock import patch

import msgspec
from falcon.asgi import WebSocket

from kernel.__main__ import main
from kernel.api import app
from kernel.api.connect import Connect, Upgraded
from kernel.api.envelopes import NewMessage
from kernel.api.exchange import Asked, Responded
from kernel.api.lifecycle import Lifecycle, Start
from kernel.api.messages import Messages, Waits
from kernel.api.protocols import SOCKET
from kernel.api.routes import route
from kernel.link import Closed

ID = "00000000-0000-7000-8000-000000000000"
ANSWER = b'{"id":"' + ID.encode() + b'","phase":"running"' + b" " * 600 + b"}"
"""About as long as an agent."""


FRAME = (
    '{"type":"request","requestId":"%d","method":"POST","path":"/api/v1/agents/agent-0/stop","query":"projectId=",'
    '"headers":{"X-Dispatch-Id":"-"},"body":"' + "x" * 800 + '"}'
)
"""About as long as a start."""


class Answered(msgspec.Struct, rename="camel"):
    request_id: int = -1
    """Missing in the broker's first frame, which is no answer."""


class Tunnel:
    """The socket that came last, and who waits for an answer from it."""

    socket: Upgraded
    waiting: dict[int, asyncio.Future[None]] = {}
    numbers = itertools.count()
    _one = msgspec.json.Decoder(Answered, strict=False)
    _many = msgspec.json.Decoder(list[Answered], strict=False)

    @classmethod
    async def ask(cls) -> None:
        number = next(cls.numbers)
        answer = cls.waiting[number] = asyncio.get_running_loop().create_future()
        await cls.socket.send(FRAME % number)
        await answer

    @classmethod
    def heard(cls, text: str | bytes) -> None:
        for answered in cls._many.decode(text) if text[:1] == "[" else [cls._one.decode(text)]:
            if waiting := cls.waiting.pop(answered.request_id, None):
                waiting.set_result(None)


def _answer(resp: Responded, status: int) -> None:
    resp.status = status
    resp.set_header("X-Dispatch-Id", ID)
    resp.content_type = "application/json"
    resp.data = ANSWER


class BareLifecycle(Lifecycle):
    @route(action="agent.start", access="user", body=Start)
    async def on_post_start(self, req: Asked, resp: Responded, agent: str, body: Start, project: str = "") -> None:
        _answer(resp, 200)

    @route(action="agent.stop", access="user")
    async def on_post_stop(self, req: Asked, resp: Responded, agent: str, project: str = "") -> None:
        await Tunnel.ask()
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
        socket = Tunnel.socket = Upgraded(ws, req.scope["extensions"][SOCKET])
        await socket.send('{"type":"connected"}')
        try:
            while True:
                Tunnel.heard(await socket.receive())
        except Closed:
            return


if __name__ == "__main__":
    with (
        patch.object(app, "Lifecycle", BareLifecycle),
        patch.object(app, "Messages", BareMessages),
        patch.object(app, "Connect", BareConnect),
    ):
        main()
