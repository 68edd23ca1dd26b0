"""What a test tells a running scripted broker: one JSON object a line, one JSON answer a line."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.harness.sockets import NotConnected

if TYPE_CHECKING:
    from tests.harness.scripted_broker import ScriptedBroker

LONGEST = 8 << 20


class Commands:
    """Each command is a method; `do` names it and the other members are its arguments."""

    def __init__(self, broker: ScriptedBroker, tasks: TaskGroup) -> None:
        self.broker = broker
        self.tasks = tasks

    async def converse(self, stream: SocketStream) -> None:
        lines = BufferedByteReceiveStream(stream)
        lifeline = False
        async with stream:
            while True:
                try:
                    line = await lines.receive_until(b"\n", LONGEST)
                except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError):
                    break
                asked = json.loads(line)
                lifeline = lifeline or asked["do"] == "lifeline"
                answer = await self.obey(**asked)
                await stream.send(json.dumps(answer).encode() + b"\n")
        if lifeline:
            self.tasks.cancel_scope.cancel()

    async def obey(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            return await getattr(self, f"do_{do}")(**arguments) or {}
        except (LookupError, ValueError, TypeError, AttributeError) as wrong:
            return {"wrong": f"{do}: {wrong!r}"}

    async def do_lifeline(self) -> None:
        """The program ends when this connection does."""

    async def do_rule(self, **rule: Any) -> None:
        self.broker.script.add(rule)

    async def do_clear(self) -> None:
        self.broker.script.rules.clear()

    async def do_release(self, gate: str) -> None:
        self.broker.script.release(gate)

    async def do_auto(self, on: bool) -> None:
        self.broker.auto = on
        self.broker.auto_changed.set()

    async def do_urls(self, urls: list[str]) -> None:
        self.broker.settings.urls = urls

    async def do_dial(self, **hello: Any) -> dict[str, Any]:
        """One more socket; `hello` replaces members of its `connect` frame."""
        try:
            socket = await self.broker.open_socket(self.tasks, **hello)
        except NotConnected as refused:
            return {"refused": refused.told}
        except OSError as away:
            return {"refused": {"status": None, "why": str(away)}}
        return {"socket": socket.n, "connected": socket.connected}

    async def do_close(self, socket: int | None = None, code: int = 1000, reason: str = "") -> None:
        await self.broker.socket(socket).close(code, reason)

    async def do_abort(self, socket: int | None = None) -> None:
        self.broker.socket(socket).abort()

    async def do_pause(self, socket: int | None = None) -> None:
        self.broker.socket(socket).pause()

    async def do_resume(self, socket: int | None = None) -> None:
        self.broker.socket(socket).resume()

    async def do_send(
        self,
        socket: int | None = None,
        frame: Any = None,
        text: str | None = None,
        binary: str | None = None,
        wire: str | None = None,
    ) -> None:
        """A JSON frame, a text, a binary frame (base64), or bytes past the protocol (base64)."""
        target = self.broker.socket(socket)
        if wire is not None:
            target.send_wire(base64.b64decode(wire))
        elif binary is not None:
            await target.send_raw(base64.b64decode(binary))
        else:
            await target.send_raw(json.dumps(frame) if text is None else text)

    async def do_heartbeat(self, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self.broker.heartbeat(body)

    async def do_state(self) -> dict[str, Any]:
        return {
            "open": [socket.n for socket in self.broker.sockets if socket.open],
            "epochs": {socket.n: socket.epoch for socket in self.broker.sockets},
            "lastEpoch": self.broker.last_epoch,
            "instance": self.broker.instance,
            "agents": self.broker.executor.personality.agents_told(),
        }
