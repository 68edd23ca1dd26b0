"""The HTTP server's own socket and settings."""

from __future__ import annotations

import errno
import socket as sockets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from kernel.api.protocols import Head, Socket
from kernel.config import Settings
from kernel.errors import Misconfigured

USER_TIMEOUT_MS = 20_000
"""A peer that acknowledges nothing for so long is gone: frees a send that would wait for ever (TCP_USER_TIMEOUT)."""
LAST_REQUESTS = 5
"""Seconds that requests under way get at a stop."""


class Server(uvicorn.Server):
    """uvicorn without its own idea of signals: it would raise them again and skip our cleanup."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def listening_socket(settings: Settings) -> Iterator[sockets.socket]:
    """Our own socket: the port is known before the start, and a busy one is our error."""
    host, port = settings.server.host, settings.server.port
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    listening = sockets.socket(family, sockets.SOCK_STREAM)
    try:
        listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        if hasattr(sockets, "TCP_USER_TIMEOUT"):
            listening.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as fault:
        listening.close()
        which = "--port" if fault.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise Misconfigured(
            f"cannot listen on {host}:{port}: {fault.strerror or fault}; choose another with {which}"
        ) from fault
    with listening:
        yield listening


def url_of(listening: sockets.socket) -> str:
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - what is bound to all is reached at loopback
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_config(app: Any, settings: Settings) -> uvicorn.Config:
    server, channel = settings.server, settings.channel
    head = type("Head", (Head,), {"head_limit": server.head_limit, "head_deadline": server.head_deadline})
    return uvicorn.Config(
        app,
        http=head,
        ws=Socket,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=channel.frame_limit,
        ws_per_message_deflate=False,
        ws_ping_interval=channel.ping,
        ws_ping_timeout=None,
        timeout_graceful_shutdown=LAST_REQUESTS,
    )
