"""What hubs and a broker say to each other, read on its way through a proxy, for a broker that keeps no history.

Written down as the scripted broker writes its own history, so that the checker reads both: `dial`, `connected`,
`request`, `answer`, `closed`, each with the broker's id. It shares no code with hub or broker.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness.history import Event, History, read
from tests.harness.proxy import Direction
from tests.harness.requests import Unreadable, read_request

HEAD = b"\r\n\r\n"
TEXT, CONTINUED = 1, 0


class Wiretap:
    """`line` is the `witness` of a `Proxy`; one wiretap may listen at several of them."""

    def __init__(self, path: Path) -> None:
        self.history = History(path)
        self._numbers = itertools.count(1)
        self._counting = threading.Lock()  # each proxy has a thread of its own

    def line(self) -> Line:
        with self._counting:
            return Line(next(self._numbers), self.history)

    def of(self, broker_id: str) -> list[Event]:
        """One broker's part, in the order in which it passed."""
        return [event for event in read(self.history.path) if event["broker"] == broker_id]

    def close(self) -> None:
        self.history.close()


class Line:
    """One connection. What is no WebSocket of a broker is not written down."""

    def __init__(self, n: int, history: History) -> None:
        self.n = n
        self._history = history
        self._broker: str | None = None
        self._readers: dict[Direction, Reader] = {
            "up": Reader(b"upgrade: websocket"),
            "down": Reader(b" 101 "),
        }

    def heard(self, direction: Direction, piece: bytes) -> None:
        for text in self._readers[direction].texts(piece):
            told = json.loads(text)
            for frame in told if isinstance(told, list) else (told,):
                self._said(frame) if direction == "up" else self._ordered(frame)

    def over(self) -> None:
        if self._broker:
            self._write("closed")

    def _said(self, frame: dict[str, Any]) -> None:
        """By the broker."""
        if frame["type"] == "connect":
            self._broker = frame["brokerId"]
            self._write("dial", last=frame.get("lastEpoch"), instance=frame.get("instance"))
        elif frame["type"] == "response":
            self._write("answer", requestId=frame["requestId"], status=frame["statusCode"])

    def _ordered(self, frame: dict[str, Any]) -> None:
        """By the hub."""
        if frame["type"] == "connected":
            self._write("connected", epoch=frame.get("epoch"), frame=frame)
        elif frame["type"] == "request":
            try:
                self._write("request", objection=None, **read_request(frame).told())
            except Unreadable as why:
                self._write("dropped", why=str(why))

    def _write(self, what: str, **more: Any) -> None:
        self._history.write(what, broker=self._broker, socket=self.n, **more)


class Reader:
    """One direction of a connection that becomes a WebSocket without extensions (RFC 6455)."""

    def __init__(self, wanted: bytes) -> None:
        """`wanted`, in small letters, is in the head of the HTTP message if it becomes one."""
        self._wanted = wanted
        self._data = b""
        self._upgraded: bool | None = None
        self._message = b""

    def texts(self, piece: bytes) -> Iterator[str]:
        """The messages that this piece completes."""
        if self._upgraded is False:
            return
        self._data += piece
        if self._upgraded is None:
            head, found, rest = self._data.partition(HEAD)
            if not found:
                return
            self._data = rest
            self._upgraded = self._wanted in head.lower()
        if self._upgraded:
            yield from self._whole()

    def _whole(self) -> Iterator[str]:
        while frame := self._frame():
            final, opcode, payload = frame
            if opcode in (TEXT, CONTINUED):
                self._message += payload
                if final:
                    whole, self._message = self._message, b""
                    yield whole.decode()

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """The next whole one, taken out of the data."""
        if len(self._data) < 2:
            return None
        first, second = self._data[:2]
        longer = {126: 2, 127: 8}.get(second & 127, 0)
        masked = 4 if second & 128 else 0
        length = int.from_bytes(self._data[2 : 2 + longer]) if longer else second & 127
        begin = 2 + longer + masked
        if len(self._data) < begin or len(self._data) < begin + length:
            return None
        payload = self._data[begin : begin + length]
        if masked:
            key = self._data[begin - 4 : begin]
            payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
        self._data = self._data[begin + length :]
        return bool(first & 128), first & 15, payload
