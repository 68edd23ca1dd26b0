"""How one hub gets to its database: through one proxy, or, with a pooler in between, through one for LISTEN besides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kernel.testing.postgres import Server
from tests.harness.pooler import Pooler
from tests.harness.proxy import End, Proxy


class Way:
    """All of a hub's connections to its database are broken together, as its network is."""

    def __init__(self, server: Server, pooler: Pooler | None) -> None:
        self.server = server
        self.pooler = pooler
        self.all = Proxy(pooler.port if pooler else server.port)
        self.listening = Proxy(server.port) if pooler else self.all
        self._each: Sequence[Proxy] = (self.all, self.listening) if pooler else (self.all,)

    def dsns(self, database: str) -> tuple[str, str | None]:
        """`dsn` and `listen_dsn` of the hub."""
        listen = self.server.dsn(database, port=self.listening.port) if self.pooler else None
        return self.server.dsn(database, port=self.all.port), listen

    def stall(self) -> None:
        for proxy in self._each:
            proxy.stall()

    def refuse(self) -> None:
        for proxy in self._each:
            proxy.refuse()

    def cut(self) -> None:
        for proxy in self._each:
            proxy.cut()

    def half_open(self, gone: End) -> None:
        for proxy in self._each:
            proxy.half_open(gone)

    def delay(self, seconds: float) -> None:
        for proxy in self._each:
            proxy.delay(seconds)

    def heal(self) -> None:
        for proxy in self._each:
            proxy.heal()

    def lead_listener(self, port: int) -> None:
        """To another port, from now on."""
        self.listening.retarget(port)
        self.listening.cut()

    @contextmanager
    def open(self) -> Iterator[Way]:
        with self.all:
            if self.pooler is None:
                yield self
                return
            with self.listening:
                yield self
