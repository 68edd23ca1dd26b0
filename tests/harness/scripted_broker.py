"""A broker of its own process whose every answer a test can script: `python -m tests.harness.scripted_broker FILE`.

An independent reading of the wire: it shares no code with the hub. FILE is JSON (see `Settings`). The program writes
`ready.json` ({pid, port}) into its directory, takes commands as JSON lines on that loopback port, and ends when the
connection that said `lifeline` ends, so that it never outlives its test.
"""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio.abc import SocketAttribute, TaskGroup
from websockets.exceptions import ConnectionClosed

from tests.harness.commands import Commands
from tests.harness.execution import Executor
from tests.harness.history import History
from tests.harness.inbox import Inbox
from tests.harness.replies import Ours, Stock
from tests.harness.requests import Request, Unreadable, read_request
from tests.harness.script import Script
from tests.harness.signing import fault, signed
from tests.harness.sockets import Identity, NotConnected, Socket, dial

CAPABILITIES = ("dedupe", "epoch", "window", "batch", "reconnect", "progress", "cancel", "suspend")
STOCK_READS = 65_536


@dataclass(kw_only=True)
class Settings:
    """What FILE holds. `secret` is base64, as the hub gave it."""

    directory: str
    urls: list[str]
    broker_id: str
    secret: str
    personality: Literal["ours", "stock"] = "ours"
    capabilities: list[str] = field(default_factory=lambda: list(CAPABILITIES))
    window: int | None = 64
    disk: bool = True
    """The inbox outlives the process."""
    auto: bool = True
    """Dials, and dials again when it has no socket."""
    backoff: tuple[float, float] = (0.1, 1.0)
    frame_limit: int = 1 << 20
    other_instance_wait: float = 30.0
    ping_every: float = 30.0
    pong_wait: float = 60.0
    heartbeat_every: float | None = None
    """Seconds between HTTP heartbeats of a stock broker; None: only on command."""


class ScriptedBroker:
    """Keeps sockets, hands frames to the executor, and remembers the highest epoch on disk."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.directory = Path(settings.directory)
        self.ours = settings.personality == "ours"
        self.identity = Identity(broker_id=settings.broker_id, secret=base64.b64decode(settings.secret))
        self.instance = str(uuid.uuid4())
        self.history = History(self.directory / "history.jsonl")
        self.script = Script()
        self.sockets: list[Socket] = []
        self.auto = settings.auto
        self.auto_changed = anyio.Event()
        self.dialled = 0
        self.nonces: set[str] = set()
        inbox = Inbox(self.directory / "inbox.jsonl" if settings.disk else None)
        personality = Ours() if self.ours else Stock()
        self.executor = Executor(self.history, self.script, inbox, personality, ours=self.ours, newest=self.newest)
        self._epoch_file = self.directory / "last-epoch"

    # -- sockets

    def newest(self) -> Socket | None:
        return next((socket for socket in reversed(self.sockets) if socket.open), None)

    def socket(self, n: int | None) -> Socket:
        found = self.newest() if n is None else next((s for s in self.sockets if s.n == n), None)
        if found is None:
            raise LookupError(f"no open socket {n or ''}")
        return found

    @property
    def last_epoch(self) -> int:
        return int(self._epoch_file.read_text()) if self._epoch_file.exists() else 0

    def see_epoch(self, epoch: int | None) -> None:
        if epoch is not None and epoch > self.last_epoch:
            self._epoch_file.with_suffix(".new").write_text(str(epoch))
            self._epoch_file.with_suffix(".new").replace(self._epoch_file)

    def hello(self) -> dict[str, Any]:
        frame: dict[str, Any] = {"type": "connect", "brokerId": self.identity.broker_id, "version": "scripted-1"}
        if not self.ours:
            return {**frame, "groves": [], "timestamp": int(time.time())}
        ours = {"capabilities": self.settings.capabilities, "window": self.settings.window, "instance": self.instance}
        return {**frame, "projects": [], "timestamp": int(time.time()), "lastEpoch": self.last_epoch, **ours}

    async def open_socket(self, tasks: TaskGroup, url: str | None = None, **hello: Any) -> Socket:
        """Dials one socket and serves it; the others stay. Raises: NotConnected, OSError."""
        self.dialled += 1
        n = self.dialled
        limits = (self.settings.frame_limit if self.ours else STOCK_READS, self.settings.frame_limit)
        target = url or self.settings.urls[(n - 1) % len(self.settings.urls)]
        try:
            socket = await dial(n, target, self.identity, {**self.hello(), **hello}, self.history, limits)
        except NotConnected as refused:
            self.history.write("refused", socket=n, **refused.told)
            raise
        except OSError as away:
            self.history.write("unreached", socket=n, why=str(away))
            raise
        self.see_epoch(socket.epoch)
        self.sockets.append(socket)
        tasks.start_soon(self.serve, tasks, socket)
        return socket

    async def serve(self, tasks: TaskGroup, socket: Socket) -> None:
        """Reads one socket to its end."""
        if self.ours:
            payload = {"timestamp": int(time.time()), "activeAgents": len(self.executor.personality.agents_told())}
            await socket.send({"type": "event", "event": "heartbeat", "payload": payload})
        async with anyio.create_task_group() as beside:
            beside.start_soon(self.ping, socket)
            try:
                while True:
                    await self.take(tasks, socket, await socket.ws.recv())
            except ConnectionClosed:
                pass
            beside.cancel_scope.cancel()
        socket.open = False
        self.history.write("closed", socket=socket.n, code=socket.ws.close_code, reason=socket.ws.close_reason)
        self.auto_changed.set()

    async def ping(self, socket: Socket) -> None:
        """Both kinds ping on their own, and leave when no pong came for `pong_wait`."""
        waiting: list[tuple[float, Any]] = []
        while True:
            await anyio.sleep(self.settings.ping_every)
            for sent, pong in list(waiting):
                if pong.done():
                    socket.last_pong = max(socket.last_pong, sent)
                    waiting.remove((sent, pong))
            if time.monotonic() - socket.last_pong > self.settings.pong_wait:
                self.history.write("no_pong", socket=socket.n)
                socket.abort()
                return
            try:
                waiting.append((time.monotonic(), await socket.ws.ping()))
            except ConnectionClosed:
                return

    # -- frames

    async def take(self, tasks: TaskGroup, socket: Socket, data: str | bytes) -> None:
        """One frame in. An array is each of its members for ours, nothing for a stock broker."""
        text = data if isinstance(data, str) else data.decode(errors="replace")
        try:
            frame = json.loads(text)
        except ValueError:
            frame = None
        self.history.write("in", socket=socket.n, size=len(text), frame=_kept(frame), batch=isinstance(frame, list))
        if isinstance(frame, list) and self.ours and "batch" in self.settings.capabilities:
            for member in frame:
                await self.take_one(tasks, socket, member)
        elif isinstance(frame, dict):
            await self.take_one(tasks, socket, frame)

    async def take_one(self, tasks: TaskGroup, socket: Socket, frame: dict[str, Any]) -> None:
        match frame.get("type"):
            case "request":
                await self.take_request(tasks, socket, frame)
            case "ping":
                await socket.send({"type": "pong", "timestamp": frame.get("timestamp")})
            case "cancel" if self.ours:
                self.executor.cancel(str(frame.get("dispatchId")))
            case "reconnect" if self.ours and "reconnect" in self.settings.capabilities:
                tasks.start_soon(self.follow_advice, tasks, socket, frame)

    async def take_request(self, tasks: TaskGroup, socket: Socket, frame: dict[str, Any]) -> None:
        try:
            request = read_request(frame)
        except Unreadable as why:
            self.history.write("dropped", socket=socket.n, why=str(why), frame=_kept(frame))
            return
        objection = fault(self.identity.secret, self.identity.broker_id, request.asked, self.nonces)
        self.history.write("request", socket=socket.n, objection=objection, **request.told())
        if objection:
            body = {"error": {"code": "invalid_signature", "message": objection}}
            await socket.answer(request.request_id, 401, body, "good", not self.ours)
        elif self.ours:
            self.see_epoch(request.number("X-Dispatch-Epoch"))
            tasks.start_soon(self.executor.ours, socket, request, self.last_epoch)
        else:
            await self.serve_in_read_loop(socket, request)

    async def serve_in_read_loop(self, socket: Socket, request: Request) -> None:
        """A stock broker reads nothing while it works: no ping is answered, no closed socket noticed."""
        socket.pause()
        try:
            await self.executor.stock(socket, request)
        finally:
            socket.resume()

    async def follow_advice(self, tasks: TaskGroup, socket: Socket, frame: dict[str, Any]) -> None:
        """Dials the next hub first, then closes the socket that gave the advice. One that is closed before that is
        lost like any other."""
        await anyio.sleep(float(frame.get("afterMs") or 0) / 1000)
        turn = self.settings.urls.index(socket.url) if socket.url in self.settings.urls else 0
        while socket.open:
            turn += 1
            try:
                await self.open_socket(tasks, self.settings.urls[turn % len(self.settings.urls)])
            except (NotConnected, OSError):
                await anyio.sleep(self.settings.backoff[0])
            else:
                await socket.close(1000)
                return

    # -- dialling and heartbeats

    async def keep_dialling(self, tasks: TaskGroup) -> None:
        """Ours backs off with jitter; a stock broker only after a dial that failed before `connected`."""
        shortest, longest = self.settings.backoff
        wait = shortest
        while True:
            self.auto_changed = anyio.Event()
            if not self.auto or self.newest():
                await self.auto_changed.wait()
                continue
            if self.dialled:
                await anyio.sleep(self.pause_before_dial(wait))
            try:
                await self.open_socket(tasks)
                wait = shortest
            except (NotConnected, OSError):
                wait = min(wait * 2, longest)
                await anyio.sleep(wait if not self.ours else 0)

    def pause_before_dial(self, wait: float) -> float:
        if not self.ours:
            return 0.003
        last = self.sockets[-1] if self.sockets else None
        if last and last.ws.close_code == 4409 and last.ws.close_reason == "other_instance":
            return self.settings.other_instance_wait
        return random.uniform(0, wait)

    async def heartbeat(self, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One signed HTTP heartbeat: the only way in which a stock broker reports its agents."""
        agents = self.executor.personality.agents_told()
        groves = [{"groveId": self.executor.grove, "agentCount": len(agents), "agents": agents}] if agents else None
        told = body or {"status": "online", **({"groves": groves} if groves else {})}
        data = json.dumps(told).encode()
        path = f"/api/v1/runtime-brokers/{self.identity.broker_id}/heartbeat"
        headers = signed(self.identity.broker_id, self.identity.secret, "POST", path, body=data)
        sent = {"Content-Type": "application/json", **headers}
        asked = urllib.request.Request(f"{self.settings.urls[0]}{path}", data, sent, method="POST")
        status, text = await anyio.to_thread.run_sync(_ask, asked)
        self.history.write("heartbeat", status=status, sent=told, answer=text)
        return {"status": status, "answer": text}

    async def keep_beating(self, every: float) -> None:
        while True:
            await self.heartbeat()
            await anyio.sleep(every)

    async def run(self) -> None:
        self.history.write("born", instance=self.instance, personality=self.settings.personality)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with listener, anyio.create_task_group() as tasks:
            commands = Commands(self, tasks)
            tasks.start_soon(listener.serve, commands.converse)
            if self.settings.heartbeat_every:
                tasks.start_soon(self.keep_beating, self.settings.heartbeat_every)
            ready = self.directory / "ready.json"
            ready.with_suffix(".new").write_text(
                json.dumps({"pid": os.getpid(), "port": listener.extra(SocketAttribute.local_port)})
            )
            ready.with_suffix(".new").replace(ready)
            await self.keep_dialling(tasks)


def _kept(frame: Any) -> Any:
    """A frame as the history keeps it: bodies are in `request` events already, large ones are cut."""
    if isinstance(frame, list):
        return [_kept(member) for member in frame]
    if isinstance(frame, dict) and len(str(frame.get("body") or "")) > 2048:
        return {**frame, "body": f"{len(str(frame['body']))} characters"}
    return frame


def _ask(asked: urllib.request.Request) -> tuple[int | None, str]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(asked, timeout=10) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode(errors="replace")
    except OSError as away:
        return None, str(away)


def main() -> None:
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text()))
    anyio.run(ScriptedBroker(settings).run)


if __name__ == "__main__":
    main()
