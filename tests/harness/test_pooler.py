"""The pooler of the tests leaves nothing open, whatever its server does."""

from __future__ import annotations

import gc
import socket
import threading

from tests.harness.pooler import VERSION_3, Pooler, message

WORDS = b"user\0postgres\0database\0one\0\0"


def starting_up(listener: socket.socket) -> None:
    """A server that greets nobody yet."""
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(message(b"E", b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"))
    assert connection.recv(4096) == b"", "the pooler did not hang up"
    connection.close()


def test_a_server_that_does_not_greet_is_hung_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Pooler(listener.getsockname()[1]) as pooler:
        listener.settimeout(20)
        server = threading.Thread(target=starting_up, args=(listener,))
        server.start()
        with socket.create_connection((pooler.host, pooler.port), timeout=20) as client:
            client.sendall((len(WORDS) + 8).to_bytes(4) + VERSION_3.to_bytes(4) + WORDS)
            assert client.recv(4096) == b""
        server.join(20)
        assert not server.is_alive()
        gc.collect()  # what was left open would warn here, and a warning is an error
    assert pooler.sessions == 0
