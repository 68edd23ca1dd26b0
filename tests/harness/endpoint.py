"""An HTTP endpoint of a broker that a test scripts, in a thread of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kernel import wire


class Endpoint:
    """Answers what one of `keys` signed: each path with `answers[path]`: status, headers, body. `seen` is what came."""

    def __init__(self, broker_id: str, *keys: bytes) -> None:
        self.broker_id = broker_id
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.keys = keys
        self.url = ""

    def told(self, path: str, status: int, body: Any = None, **headers: str) -> None:
        named = {
            "X-Scion-Broker-ID": self.broker_id,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        self.answers[path] = (status, named, b"" if body is None else json.dumps(body).encode())

    def takes(self, method: str, target: str, headers: dict[str, str], body: bytes) -> bool:
        path, _, query = target.partition("?")
        stamp, nonce = headers.get(wire.TIMESTAMP, ""), headers.get(wire.NONCE, "")
        canonical = wire.canonical_string(method, path, query, stamp, nonce, wire.covered(headers), body)
        return any(wire.is_signed(key, canonical, headers.get(wire.SIGNATURE, "")) for key in self.keys)


@contextmanager
def served(broker_id: str, *keys: bytes) -> Iterator[Endpoint]:
    endpoint = Endpoint(broker_id, *keys)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = dict(self.headers.items())
            endpoint.seen.append((f"{self.command} {self.path}", headers, body))
            status, named, told = endpoint.answers.get(self.path.partition("?")[0], (404, {}, b""))
            if not endpoint.takes(self.command, self.path, headers, body):
                status, told = 401, b""
            self.send_response(status)
            for name, value in {**named, "Content-Length": str(len(told))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the names are the library's

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
