"""The scripted broker does what its script says, seen from a bare WebSocket server in the hub's place."""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.harness.brokerprocess import BrokerProcess
from tests.harness.history import Event
from tests.harness.signing import Asked, fault, signed

pytestmark = pytest.mark.anyio

SECRET = os.urandom(32)
BROKER = str(uuid.uuid4())
Frame = dict[str, Any]


class BareHub:
    """Greets each socket with `connected`, remembers what it reads, sends what a test wants."""

    def __init__(self) -> None:
        self.sockets: list[ServerConnection] = []
        self.frames: list[tuple[int, Any]] = []
        self.server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{next(iter(self.server.sockets)).getsockname()[1]}"

    async def greet(self, ws: ServerConnection) -> None:
        assert ws.request
        asked = Asked(method="GET", path=ws.request.path, headers=dict(ws.request.headers.raw_items()))
        assert fault(SECRET, BROKER, asked, set()) is None
        self.sockets.append(ws)
        number = len(self.sockets)
        try:
            self.frames.append((number, json.loads(await ws.recv())))
            connected = {"type": "connected", "brokerId": BROKER, "sessionId": "s", "pingIntervalMs": 1000}
            await ws.send(json.dumps({**connected, "epoch": number}))
            async for text in ws:
                self.frames.append((number, json.loads(text)))
        except ConnectionClosed:
            pass

    async def request(self, op: str = "start", *, socket: int = -1, dispatch: str = "", **more: Any) -> str:
        """One signed request frame about agent `a`; its requestId."""
        path = more.pop("path", f"/api/v1/agents/a/{op}")
        body = json.dumps(more.pop("body", {"runId": "r"})).encode()
        headers = signed(BROKER, SECRET, "POST", path, query="projectId=p", body=body)
        headers |= {"X-Dispatch-Id": dispatch or str(uuid.uuid4()), "X-Dispatch-Attempt": "1"}
        headers |= {"X-Dispatch-Epoch": more.pop("epoch", str(len(self.sockets))), "X-Dispatch-Timeout-Ms": "60000"}
        request_id = str(uuid.uuid4())
        frame = {"type": "request", "requestId": request_id, "method": "POST", "path": path, "query": "projectId=p"}
        frame |= {"headers": headers, "body": base64.b64encode(body).decode(), **more}
        await self.sockets[socket].send(json.dumps(frame))
        return request_id

    async def frame(self, **wanted: Any) -> Frame:
        """The first frame with these members, awaited."""
        with anyio.fail_after(20):
            while True:
                for _, frame in self.frames:
                    if isinstance(frame, dict) and wanted.items() <= frame.items():
                        return frame
                await anyio.sleep(0.01)

    async def response(self, request_id: str) -> tuple[int, Any]:
        frame = await self.frame(type="response", requestId=request_id)
        body = base64.b64decode(frame.get("body") or "")
        return frame["statusCode"], json.loads(body) if body else None


@asynccontextmanager
async def connected(directory: Path, **settings: Any) -> AsyncIterator[tuple[BareHub, BrokerProcess]]:
    hub = BareHub()
    async with serve(hub.greet, "127.0.0.1", 0, max_size=1 << 22) as hub.server:
        identity = {"broker_id": BROKER, "secret": base64.b64encode(SECRET).decode()}
        async with BrokerProcess(directory, urls=[hub.url], **identity, **settings) as broker:
            await broker.seen(what="connected")
            yield hub, broker


async def test_it_announces_itself_and_answers_a_request_with_its_echo(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        hello = hub.frames[0][1]
        assert hello["type"] == "connect"
        assert "dedupe" in hello["capabilities"]
        status, body = await hub.response(await hub.request(dispatch="d1"))
        assert (status, body["echo"], body["agent"]["phase"]) == (200, "d1", "running")
        assert [effect["dispatch"] for effect in broker.effects()] == ["d1"]


async def test_a_repeated_id_is_answered_the_same_and_runs_nothing(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        first = await hub.response(await hub.request(dispatch="d1"))
        assert await hub.response(await hub.request(dispatch="d1")) == first
        assert len(broker.effects(dispatch="d1")) == 1


async def test_a_repeat_of_a_running_id_joins_it(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        await broker.rule(op="start", gate="g")
        one = await hub.request(dispatch="d1")
        await broker.seen(what="effect")
        two = await hub.request(dispatch="d1")
        await broker.seen(what="joined")
        await broker.release("g")
        assert await hub.response(one) == await hub.response(two)
        assert len(broker.effects()) == 1


async def test_after_kill_it_finds_the_effect_done_and_answers_without_a_second(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        await broker.rule(op="start", gate="g")
        await hub.request(dispatch="d1")
        await broker.seen(what="effect")
        broker.kill()
        await broker.restart()
        await broker.seen(what="connected", times=2)
        status, _ = await hub.response(await hub.request(dispatch="d1"))
        assert status == 200
        assert len(broker.effects()) == 1


async def test_passing_answers_are_forgotten_and_the_next_attempt_runs(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        await broker.rule(op="start", times=1, status=429)
        assert (await hub.response(await hub.request(dispatch="d1")))[0] == 429
        assert (await hub.response(await hub.request(dispatch="d1")))[0] == 200
        assert len(broker.effects()) == 1


async def test_a_new_id_under_a_former_epoch_is_refused(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        await broker.tell("dial")
        status, body = await hub.response(await hub.request(epoch="1", dispatch="d1"))
        assert (status, body["error"]["code"]) == (412, "stale_epoch")
        assert broker.effects() == []


async def test_an_unsigned_request_is_refused(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        status, _ = await hub.response(await hub.request(headers={"X-Dispatch-Id": "d1"}))
        assert status == 401
        assert broker.effects() == []


async def test_a_cancel_stops_what_has_not_taken_effect(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        await broker.rule(op="start", gate="g", effect="after")
        asked = await hub.request(dispatch="d1")
        await hub.frame(type="accepted", requestId=asked)
        await hub.sockets[-1].send(json.dumps({"type": "cancel", "requestId": asked, "dispatchId": "d1"}))
        assert (await hub.response(asked))[0] == 499
        assert broker.effects() == []


async def test_a_late_answer_can_take_the_newest_socket(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        await broker.rule(op="start", gate="g", on="newest")
        asked = await hub.request()
        await broker.seen(what="effect")
        await broker.tell("dial")
        await broker.release("g")
        await hub.response(asked)
        assert [number for number, frame in hub.frames if frame["type"] == "response"] == [2]


async def test_advice_to_reconnect_makes_before_it_breaks(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, broker):
        await hub.sockets[0].send(json.dumps({"type": "reconnect", "afterMs": 10, "deadlineMs": 5000}))
        closed = await broker.seen(what="closed")
        second = await broker.seen(what="connected", times=2)
        assert second["t"] < closed["t"]


async def test_it_reads_batches(tmp_path: Path) -> None:
    async with connected(tmp_path) as (hub, _broker):
        await hub.sockets[0].send(json.dumps([{"type": "ping", "timestamp": 1}, {"type": "ping", "timestamp": 2}]))
        await hub.frame(type="pong", timestamp=2)


async def test_a_stock_broker_works_in_its_read_loop_and_answers_no_ping_meanwhile(tmp_path: Path) -> None:
    async with connected(tmp_path, personality="stock") as (hub, broker):
        assert "capabilities" not in hub.frames[0][1]
        await broker.rule(op="start", gate="g")
        first = await hub.request()
        await broker.seen(what="effect")
        second = await hub.request("stop")
        pong: Any = await hub.sockets[0].ping()
        await anyio.sleep(0.3)
        assert not pong.done()
        await broker.release("g")
        assert (await hub.response(first))[0] == 202
        assert await hub.response(second) == (202, {"status": "accepted"})
        await pong


async def test_a_stock_broker_runs_a_repeat_again_but_creates_once(tmp_path: Path) -> None:
    async with connected(tmp_path, personality="stock") as (hub, broker):
        for _ in range(2):
            await hub.response(await hub.request("stop", dispatch="d1"))
            create = {"requestId": "d2", "slug": "a", "name": "a"}
            assert (await hub.response(await hub.request(path="/api/v1/agents", body=create)))[0] == 201
        assert [effect["op"] for effect in broker.effects()] == ["stop", "create", "stop"]


async def test_a_stock_broker_drops_arrays_and_loose_base64_in_silence(tmp_path: Path) -> None:
    async with connected(tmp_path, personality="stock") as (hub, broker):
        await hub.sockets[0].send(json.dumps([{"type": "ping"}]))
        await hub.request(body={"x": "?" * 50}, dispatch="d1")
        headers = signed(BROKER, SECRET, "POST", "/api/v1/agents/a/start")
        frame = {"type": "request", "requestId": "r", "method": "POST", "path": "/api/v1/agents/a/start"}
        await hub.sockets[0].send(json.dumps({**frame, "headers": headers, "body": "eyJ4IjoxfQ"}))
        await broker.seen(what="dropped")
        assert broker.events(what="request", requestId="r") == []


async def test_a_stock_broker_closes_at_64_kib_and_is_back_at_once(tmp_path: Path) -> None:
    async with connected(tmp_path, personality="stock") as (hub, broker):
        await hub.sockets[0].send(json.dumps({"type": "request", "padding": "x" * 70_000}))
        closed = await broker.seen(what="closed")
        again = await broker.seen(what="connected", times=2)
        assert again["t"] - closed["t"] < 5


async def test_it_ends_when_its_test_does(tmp_path: Path) -> None:
    async with connected(tmp_path) as (_, broker):
        assert broker.child
        assert broker._lifeline
        await broker._lifeline.aclose()
        assert await broker.child.ended() == 0


async def test_history_times_can_be_compared_across_processes(tmp_path: Path) -> None:
    before = time.monotonic()
    async with connected(tmp_path) as (_, broker):
        born: Event = broker.events(what="born")[0]
    assert before < born["t"] < time.monotonic()
