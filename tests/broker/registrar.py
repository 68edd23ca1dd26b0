"""The HTTP side of a hub, as far as a broker and an agent use it: register, join, report."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.broker.fakehub import BROKER_ID, SECRET

JOINED = {"brokerId": BROKER_ID, "secretKey": base64.b64encode(SECRET).decode(), "hubEndpoint": "http://hub.invalid"}
REGISTERED = {"brokerId": BROKER_ID, "joinToken": "scion_join_x", "expiresAt": "2030-01-01T00:00:00Z"}


class Registrar:
    """Answers by path; `asked` holds (path, headers in lower case, body)."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        """Answers to be given first, by path."""

    def answer(self, path: str) -> tuple[int, Any]:
        if self.answers.get(path):
            return self.answers[path].pop(0)
        if path == "/api/v1/brokers":
            return 201, REGISTERED
        if path == "/api/v1/brokers/join":
            return 200, JOINED
        if path.endswith("/status"):
            return 204, None
        return 404, {"error": {"code": "not_found", "message": "no such route"}}

    def bodies(self, path: str) -> list[Any]:
        return [body for at, _, body in self.asked if at == path]


@contextmanager
def registrar() -> Iterator[Registrar]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.asked.append((self.path, headers, json.loads(body) if body else None))
            status, told = hub.answer(self.path)
            raw = b"" if told is None else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = answer  # noqa: N815 - the names that the server looks for

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Registrar(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
