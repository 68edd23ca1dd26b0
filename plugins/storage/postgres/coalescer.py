"""Sends this node's signals: one NOTIFY in flight, and what arrives meanwhile goes out together in the next."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from kernel import Clock, Signal
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.dialling import FAILURES, Backoff, Connect, dialled
from plugins.storage.postgres.faults import why
from plugins.storage.postgres.payload import PROBE, Hint, written

log = logging.getLogger(__name__)

NOTIFY = "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS signal(channel, payload)"
"""A transaction of its own that writes nothing: it holds the lock of all NOTIFYs through no flush."""
NOTIFY_ONE = "SELECT pg_notify($1, $2)"
"""The same for one signal, which is a tenth cheaper."""
DEADLINE = 1.0
"""Seconds for one NOTIFY; then it is given up, and what it told is found by the poll."""
MOST_PENDING = 10_000
"""Signals and ids that wait to be sent."""
MOST_ROWS = 500
"""Signals in one statement."""
WINDOWS = (0.0, 0.002, 0.010)
"""Seconds between a NOTIFY and the next; a longer one is in force only while NOTIFY itself is slow."""
SLOW, QUICK = 0.010, 0.005
"""Seconds for one NOTIFY above which the window grows, and below which it shrinks."""


class Window:
    """How long signals gather. After a pause nothing gathers: the first one goes out at once."""

    def __init__(self) -> None:
        self._step = 0

    @property
    def seconds(self) -> float:
        return WINDOWS[self._step]

    def note(self, took: float) -> None:
        if took > SLOW:
            self._step = min(self._step + 1, len(WINDOWS) - 1)
        elif took < QUICK:
            self._step = max(self._step - 1, 0)


class Outbox:
    """What is to be sent: each id once for its channel, kind and broker, and never more than it can hold."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str, str], dict[str, None]] = {}
        self.weight = 0

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, channel: str, kind: str, broker_id: str, ids: tuple[str, ...]) -> None:
        key = (channel, kind, broker_id)
        known = self._pending.get(key)
        if known is None:
            self._pending[key] = known = {}
            self.weight += 1
        before = len(known)
        known.update(dict.fromkeys(ids))
        self.weight += len(known) - before

    def take(self) -> tuple[str, str, str, tuple[str, ...]]:
        """The oldest: channel, kind, broker and ids."""
        (channel, kind, broker_id), ids = next(iter(self._pending.items()))
        del self._pending[channel, kind, broker_id]
        self.weight -= 1 + len(ids)
        return channel, kind, broker_id, tuple(ids)

    def clear(self) -> int:
        """Forget all of it; how much it was."""
        weight, self.weight = self.weight, 0
        self._pending.clear()
        return weight


class Coalescer:
    """Nothing waits for it and nothing depends on it: what cannot be sent is dropped, for the table is the truth."""

    def __init__(self, connect: Connect, sender: str, clock: Clock, *, failed: Callable[[], None]) -> None:
        """`failed` is told whenever something may not have gone out."""
        self._connect = connect
        self._sender = sender
        self._clock = clock
        self._tell_failed = failed
        self._backoff = Backoff(clock)
        self._outbox = Outbox()
        self._wanted = anyio.Event()
        self._sent_at = float("-inf")
        self.window = Window()
        self.fault = ""
        """Why nothing can be sent at present."""
        self.statements = 0
        self.dropped = 0
        """Signals and ids that never left."""

    def put(self, channel: str, signal: Signal) -> None:
        """Never waits and never raises."""
        self._put(channel, signal.kind, signal.broker_id, signal.ids)

    def probe(self, channel: str, nonce: str) -> None:
        """Like any other: what it meets, they meet."""
        self._put(channel, PROBE, "", (nonce,))

    def _put(self, channel: str, kind: str, broker_id: str, ids: tuple[str, ...]) -> None:
        self._outbox.put(channel, kind, broker_id, ids)
        if self._outbox.weight > MOST_PENDING:
            self.dropped += self._outbox.clear()
        self._wanted.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            try:
                async with dialled(self._connect, "signal") as connection:
                    await self._send(connection)
            except FAILURES as fault:
                self._failed(fault)
            await anyio.sleep(self._backoff.next())

    async def _send(self, connection: Connection) -> None:
        """Raises: one of `FAILURES`."""
        while True:
            await self._wanted.wait()
            rest = self._sent_at + self.window.seconds - self._clock.monotonic()
            if rest > 0:
                await anyio.sleep(rest)
            if connection.is_closed():  # before anything is taken: what waits goes out on the next one
                raise ConnectionResetError("the server ended the connection")
            await self._notify(connection)

    async def _notify(self, connection: Connection) -> None:
        before = self._outbox.weight
        channels, payloads = self._batch()
        started = self._clock.monotonic()
        try:
            with anyio.fail_after(DEADLINE):
                if len(payloads) == 1:
                    await connection.execute(NOTIFY_ONE, *channels, *payloads)
                else:
                    await connection.execute(NOTIFY, channels, payloads)
        except FAILURES:
            self.dropped += before - self._outbox.weight
            raise
        self._sent_at = self._clock.monotonic()
        self.window.note(self._sent_at - started)
        self.statements += 1
        self._succeeded()

    def _batch(self) -> tuple[list[str], list[str]]:
        """Channels and payloads of one statement, oldest first."""
        channels: list[str] = []
        payloads: list[str] = []
        while self._outbox and len(payloads) < MOST_ROWS:
            channel, kind, broker_id, ids = self._outbox.take()
            for payload in written(Hint(kind, self._sender, broker_id, ids)):
                channels.append(channel)
                payloads.append(payload)
        if not self._outbox:
            self._wanted = anyio.Event()
        return channels, payloads

    def _failed(self, fault: BaseException) -> None:
        if not self.fault:
            log.warning("signals cannot be sent: %s", why(fault))
        self.fault = why(fault)
        self._tell_failed()

    def _succeeded(self) -> None:
        self._backoff.reset()
        if self.fault:
            log.info("signals are sent again; %d were dropped since the start", self.dropped)
        self.fault = ""
