"""A hub that answers what a test tells it to, over a real socket, and remembers every request."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN = "the-token"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it arrived. `path` is below `/api/v1`, header names are lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int = 200
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


class Cut:
    """Closes the connection without any answer."""


class Hold:
    """Never answers, until the hub is closed."""


Answer = Reply | Cut | Hold
Step = Answer | Callable[[Asked], Answer]


def error(status: int, code: str, message: str = "told by the hub", **headers: str) -> Reply:
    document = {"error": {"code": code, "message": message, "details": {}, "requestId": "r-1"}}
    return Reply(status=status, document=document, headers=headers)


NOWHERE = error(404, "not_found", "there is no such thing")


class ScriptedHub:
    """Each route has a row of steps; the last one is repeated. A route without any takes `otherwise`."""

    def __init__(self, otherwise: Step = NOWHERE) -> None:
        self.otherwise = otherwise
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        self._steps: dict[tuple[str, str], list[Step]] = {}
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                hub.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that left early is no error of the hub."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def on(self, method: str, path: str, *steps: Step) -> None:
        with self._lock:
            self._steps[method, path] = list(steps)

    def asked_for(self, method: str, path: str) -> list[Asked]:
        return [request for request in self.asked if (request.method, request.path) == (method, path)]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        asked = _read(handler)
        with self._lock:
            self.asked.append(asked)
            steps = self._steps.get((asked.method, asked.path), [self.otherwise])
            step = steps.pop(0) if len(steps) > 1 else steps[0]
        if callable(step):
            step = step(asked)
        if isinstance(step, Hold):
            self.closing.wait(60)
            step = Cut()
        if isinstance(step, Cut):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        _write(handler, step)

    @contextmanager
    def running(self) -> Iterator[ScriptedHub]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join(10)


def _read(handler: BaseHTTPRequestHandler) -> Asked:
    parts = urlsplit(handler.path)
    return Asked(
        method=handler.command,
        path=unquote(parts.path).removeprefix("/api/v1"),
        query=dict(parse_qsl(parts.query)),
        headers={name.lower(): value for name, value in handler.headers.items()},
        body=handler.rfile.read(int(handler.headers.get("Content-Length", "0"))),
    )


def _write(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    body = reply.raw
    if body is None:
        body = b"" if reply.document is None else json.dumps(reply.document).encode()
    handler.send_response(reply.status)
    for name, value in reply.headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
