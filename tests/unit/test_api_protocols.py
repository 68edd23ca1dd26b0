"""The server's sockets: limits on heads, refusals that arrive, and WebSockets that can be felt and dropped."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import falcon
import falcon.asgi
import msgspec
import pytest
import uvicorn
from falcon.asgi import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kernel.api.app import Front
from kernel.api.connect import Upgraded
from kernel.api.protocols import SOCKET, Head, Socket
from kernel.link import Closed

pytestmark = pytest.mark.anyio

LIMIT = 4_096
DEADLINE = 0.5
Application = Callable[..., Awaitable[None]]


class QuickHead(Head):
    head_limit = LIMIT
    head_deadline = DEADLINE


@asynccontextmanager
async def served(app: Application, **more: Any) -> AsyncIterator[int]:
    """The port of a server on loopback, for as long as the block lasts."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        settings = {"http": QuickHead, "ws": Socket, "lifespan": "off", "log_config": None, "ws_ping_interval": None}
        config = uvicorn.Config(app, access_log=False, ws_per_message_deflate=False, **{**settings, **more})
        server = uvicorn.Server(config)
        server.capture_signals = anyio.CancelScope  # type: ignore[assignment]
        ended = anyio.Event()

        async def serve() -> None:
            await server.serve(sockets=[listening])
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            while not server.started:
                await anyio.sleep(0.01)
            try:
                yield listening.getsockname()[1]
            finally:
                server.should_exit = True
                with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                    await ended.wait()


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers at once, whatever comes."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def said(port: int, *parts: bytes, close: bool = True) -> bytes:
    """Everything that the server says until it closes."""
    read = b""
    with anyio.fail_after(30):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            try:
                for part in parts:
                    await stream.send(part)
                if close:
                    await stream.send_eof()
                while True:
                    read += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return read


def told(answer: bytes) -> tuple[int, str]:
    """Status and error code of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), msgspec.json.decode(body)["error"]["code"]


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"

# -- heads ---------------------------------------------------------------------------------------------------


async def test_a_head_within_the_limit_is_served() -> None:
    async with served(hello) as port:
        padding = b"X-Padding: " + b"x" * (LIMIT - 200) + b"\r\n"
        answer = await said(port, GET + padding + b"Connection: close\r\n\r\n", close=False)
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X-Padding: " + b"x" * LIMIT + b"\r\n\r\n",
        GET + b"X-Padding: " + b"x" * LIMIT * 20,
        GET + b"".join(b"X-%d: y\r\n" % n for n in range(LIMIT)),
        b"GET /" + b"x" * LIMIT + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        GET + b"x" * LIMIT * 20,
    ],
    ids=["whole", "endless value", "many", "url", "endless name"],
)
async def test_a_head_over_the_limit_is_431(head: bytes) -> None:
    async with served(hello) as port:
        assert told(await said(port, head, close=False)) == (431, "headers_too_large")


async def test_a_head_that_grows_bit_by_bit_is_431() -> None:
    async with served(hello) as port:
        lines = [b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(200)]
        assert told(await said(port, GET, *lines, close=False)) == (431, "headers_too_large")


async def test_trailers_are_part_of_what_is_limited() -> None:
    async with served(hello) as port:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        trailers = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(200))
        answer = await said(port, head + trailers, close=False)
        assert b"HTTP/1.1 431" in answer or answer.count(b"HTTP/1.1 200") == 1


async def test_a_head_that_does_not_arrive_is_408() -> None:
    async with served(hello) as port:
        assert told(await said(port, GET, close=False)) == (408, "invalid_request")


@pytest.mark.parametrize("idle", [b"", b"\r\n\r\n"])
async def test_a_connection_that_says_nothing_is_closed(idle: bytes) -> None:
    async with served(hello) as port:
        assert await said(port, *([idle] if idle else []), close=False) == b""


async def test_a_second_request_has_a_deadline_too() -> None:
    async with served(hello, timeout_keep_alive=30) as port:
        answer = await said(port, GET + b"\r\n", GET, close=False)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 408" in answer


async def test_a_long_answer_is_not_cut_by_the_heads_deadline() -> None:
    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await anyio.sleep(3 * DEADLINE)
        await hello(scope, receive, send)

    async with served(slow) as port:
        answer = await said(port, GET + b"Connection: close\r\n\r\n", GET, close=False)
        assert answer.startswith(b"HTTP/1.1 200")


async def test_what_is_no_http_is_told_as_json() -> None:
    async with served(hello) as port:
        assert told(await said(port, b"hello\r\n\r\n")) == (400, "invalid_request")


async def test_requests_in_a_row_are_all_served() -> None:
    async with served(hello) as port:
        last = GET + b"Connection: close\r\n\r\n"
        assert (await said(port, (GET + b"\r\n") * 4 + last, close=False)).count(b"HTTP/1.1 200") == 5


# -- bodies --------------------------------------------------------------------------------------------------


class Refusing:
    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        raise falcon.HTTPUnauthorized

    async def on_put(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.data = await req.stream.read()

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.text = "found"


def refusing() -> Application:
    app = falcon.asgi.App()
    app.add_route("/", Refusing())
    return Front(app)


async def test_a_refusal_does_not_wait_for_the_body() -> None:
    async with served(refusing()) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        with anyio.fail_after(20):
            assert (await stream.receive()).startswith(b"HTTP/1.1 401")


async def test_a_refusal_asks_for_no_body() -> None:
    async with served(refusing()) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        with anyio.fail_after(20):
            assert (await stream.receive()).startswith(b"HTTP/1.1 401")


async def test_a_body_is_read_whole_in_either_framing() -> None:
    async with served(refusing()) as port:
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        plain = await said(port, head + b"Content-Length: 5\r\n\r\nab", b"cde", close=False)
        chunks = b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
        chunked = await said(port, head + chunks, b"3\r\ncde\r\n0\r\n\r\n", close=False)
        assert plain.endswith(b"\r\n\r\nabcde")
        assert chunked.endswith(b"\r\n\r\nabcde")


async def test_an_answer_reaches_a_client_that_is_still_sending() -> None:
    async with served(refusing()) as port:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2000000\r\n\r\n"
        assert b"HTTP/1.1 401" in await said(port, head, b"x" * 1_000_000, b"x" * 1_000_000, close=False)


async def test_head_is_get_without_the_body() -> None:
    async with served(refusing()) as port:
        answer = await said(port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", close=False)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"content-length: 5" in answer
        assert answer.endswith(b"\r\n\r\n")


# -- WebSockets ----------------------------------------------------------------------------------------------


class Room:
    """Takes one WebSocket and lets the test hold its two ends."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.closed: int | None = None
        self.left = anyio.Event()
        self.socket: Upgraded
        self.reads = True

    async def on_websocket(self, req: falcon.asgi.Request, ws: WebSocket) -> None:
        await ws.accept()
        self.socket = Upgraded(ws, req.scope["extensions"][SOCKET])
        self.opened.set()
        try:
            while self.reads:
                text = await self.socket.receive()
                await self.socket.send(repr(text))
            await self.left.wait()
        except Closed as gone:
            self.closed = gone.code
        finally:
            self.left.set()


@asynccontextmanager
async def room(**more: Any) -> AsyncIterator[tuple[Room, str]]:
    opened = Room()
    app = falcon.asgi.App()
    app.ws_options.max_receive_queue = 0
    app.add_route("/", opened)
    async with served(Front(app), **more) as port:
        yield opened, f"ws://127.0.0.1:{port}/"


async def left(opened: Room) -> int | None:
    with anyio.fail_after(30):
        await opened.left.wait()
    return opened.closed


async def test_text_and_binary_come_as_what_they_are() -> None:
    async with room() as (_, url), connect(url) as client:
        await client.send("hello")
        assert await client.recv() == "'hello'"
        await client.send(b"hello")
        assert await client.recv() == "b''"


@pytest.mark.parametrize("code", [1000, 1001, 4123])
async def test_the_peers_close_code_is_known(code: int) -> None:
    async with room() as (opened, url), connect(url) as client:
        await client.close(code)
        assert await left(opened) == code


async def test_a_connection_that_breaks_has_no_code() -> None:
    async with room() as (opened, url), connect(url) as client:
        client.transport.abort()
        assert await left(opened) == 1006


async def test_a_frame_over_the_limit_closes_with_1009() -> None:
    async with room(ws_max_size=1_000) as (opened, url), connect(url) as client:
        await client.send("x" * 2_000)
        with pytest.raises(ConnectionClosed) as gone:
            await client.recv()
        assert gone.value.rcvd is not None
        assert gone.value.rcvd.code == 1009
        assert await left(opened) == 1009


async def test_our_own_close_arrives_with_code_and_reason() -> None:
    async with room() as (opened, url), connect(url) as client:
        await opened.opened.wait()
        with anyio.fail_after(20):
            await opened.socket.close(4409, "replaced")
        with pytest.raises(ConnectionClosed) as gone:
            await client.recv()
        assert gone.value.rcvd is not None
        assert (gone.value.rcvd.code, gone.value.rcvd.reason) == (4409, "replaced")


async def test_after_our_close_sending_says_closed() -> None:
    async with room() as (opened, url), connect(url):
        await opened.opened.wait()
        with anyio.fail_after(20):
            await opened.socket.close(4409, "replaced")
        with pytest.raises(Closed):
            await opened.socket.send("late")


async def test_dropping_the_transport_frees_a_sender_that_waits() -> None:
    async with room() as (opened, url), connect(url, max_queue=1, close_timeout=0.1):
        opened.reads = False
        await opened.opened.wait()

        async def drop() -> None:
            await anyio.sleep(0.5)
            opened.socket.abort()

        async def flood() -> None:
            while True:
                await opened.socket.send("x" * 1_000_000)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(drop)
                with pytest.raises(Closed):
                    await flood()


async def test_every_byte_that_comes_is_heard() -> None:
    async with room() as (opened, url), connect(url) as client:
        await opened.opened.wait()
        before = opened.socket.heard_at()
        await (await client.ping())
        assert opened.socket.heard_at() > before


class Guarded:
    async def on_websocket(self, req: falcon.asgi.Request, ws: WebSocket) -> None:
        raise falcon.HTTPTooManyRequests


async def test_a_refusal_without_our_words_is_still_plain_http(caplog: pytest.LogCaptureFixture) -> None:
    app = falcon.asgi.App()
    app.add_route("/", Guarded())
    async with served(Front(app)) as port:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}/")
        assert refused.value.response.status_code == 404
        assert msgspec.json.decode(refused.value.response.body or b"")["error"]["code"] == "not_found"
    assert not [record for record in caplog.records if record.levelname == "ERROR" and record.name == "uvicorn.error"]
