"""The keeper's unix socket: lines of JSON from brokers, and to them."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable
from typing import Any

_LIMIT = 8 * 1024 * 1024
"""Bytes that may wait for one broker to read, or for it to end its line."""

Asked = Callable[["Client", dict[str, Any]], None]


class Door:
    """Lets brokers in; `asked` gets each request. The socket lies in a folder that only its owner may enter."""

    def __init__(self, selector: selectors.BaseSelector, path: str, hello: Callable[[], dict[str, Any]], asked: Asked):
        self.selector = selector
        self.asked = asked
        self.clients: list[Client] = []
        self._hello = hello
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(16)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._arrived)

    def tell_all(self, told: dict[str, Any]) -> None:
        for client in list(self.clients):
            client.tell(told)

    def flush(self) -> bool:
        """False while something still waits to be read by a broker."""
        for client in list(self.clients):
            client.flush()
        return not any(client.outgoing for client in self.clients)

    def _arrived(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        client = Client(connection, self)
        self.clients.append(client)
        client.tell(self._hello())


class Client:
    """One connection of a broker."""

    def __init__(self, connection: socket.socket, door: Door) -> None:
        connection.setblocking(False)
        self.outgoing = b""
        self._incoming = b""
        self._connection = connection
        self._door = door
        door.selector.register(connection, selectors.EVENT_READ, self._ready)

    def tell(self, told: dict[str, Any]) -> None:
        self.outgoing += json.dumps(told).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        if self not in self._door.clients:
            return
        try:
            self.outgoing = self.outgoing[self._connection.send(self.outgoing) :] if self.outgoing else b""
        except BlockingIOError:
            pass
        except OSError:
            self._leave()
            return
        if len(self.outgoing) > _LIMIT:
            self._leave()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outgoing else 0)
        self._door.selector.modify(self._connection, wanted, self._ready)

    def _ready(self) -> None:
        self.flush()
        try:
            data = self._connection.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._incoming += data
        if not data or len(self._incoming) > _LIMIT:
            self._leave()
            return
        *lines, self._incoming = self._incoming.split(b"\n")
        for line in lines:
            self._door.asked(self, json.loads(line))

    def _leave(self) -> None:
        if self in self._door.clients:
            self._door.clients.remove(self)
            self._door.selector.unregister(self._connection)
            self._connection.close()
