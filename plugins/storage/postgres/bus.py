"""The signal bus of a hub on PostgreSQL: NOTIFY after the commit, one listener, and a probe that tells how it is."""

from __future__ import annotations

from typing import Protocol

import anyio

from kernel import BusState, Clock, Mailbox, NodeId, Signal, SignalKind
from plugins.storage.postgres.coalescer import Coalescer
from plugins.storage.postgres.dialling import Connect
from plugins.storage.postgres.health import Health
from plugins.storage.postgres.listener import Listener
from plugins.storage.postgres.payload import PROBE, read

EVERY_NODE = "hub_all"
KINDS = {str(kind): kind for kind in SignalKind if kind is not SignalKind.MISSED}
"""What a node may tell another; a kind that only newer hubs know is none of this one's."""
PATIENCE = 2.0
"""Seconds for a probe to come back."""
IMPATIENT = 1.0
"""Seconds between two probes of a bus that is not healthy."""


class BusSettings(Protocol):
    @property
    def probe(self) -> float:
        """Seconds between two probes."""
        ...


def channel_of(node_id: str) -> str:
    """The one that this node listens on; a name of less than 64 bytes."""
    return f"hub_{node_id}"


class Probe:
    """A signal to itself, the whole way round."""

    def __init__(self, nonce: str, started: float) -> None:
        self.nonce = nonce
        self.started = started
        self.took: float | None = None
        self.over = anyio.Event()


class PostgresSignals:
    """The `Signals` of one node. What is for the node itself never touches the database."""

    def __init__(self, *, connect: Connect, node_id: NodeId, clock: Clock, settings: BusSettings) -> None:
        self._node_id = node_id
        self._clock = clock
        self._settings = settings
        self._own = channel_of(node_id)
        self._mailbox = Mailbox(clock)
        self._health = Health()
        self._outgoing = Coalescer(connect, node_id, clock, failed=self._unsent)
        self._listener = Listener(
            connect,
            (self._own, EVERY_NODE),
            clock,
            heard=self._heard,
            listening=self._listening,
            lost=self._lost,
        )
        self._probe: Probe | None = None
        self._prompted = anyio.Event()

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._outgoing.run)
            tasks.start_soon(self._listener.run)
            tasks.start_soon(self._watch)

    # -- signals ------------------------------------------------------------------------------------------------

    def signal(self, node_id: NodeId | None, signal: Signal) -> None:
        if node_id is None:
            self._outgoing.put(EVERY_NODE, signal)
        elif node_id != self._node_id:
            self._outgoing.put(channel_of(node_id), signal)
            return
        self._mailbox.put(signal)

    async def wait(self, until: float) -> list[Signal]:
        return await self._mailbox.wait(until)

    def _heard(self, payload: str) -> None:
        """Called by the driver: it may only note."""
        hint = read(payload)
        if hint is None:
            return
        if hint.kind == PROBE:
            self._came_back(hint.ids)
        elif hint.sender != self._node_id and (kind := KINDS.get(hint.kind)):
            self._mailbox.put(Signal(kind=kind, broker_id=hint.broker_id, ids=hint.ids))

    # -- the listener's connection ------------------------------------------------------------------------------

    def _listening(self) -> None:
        """From now on nothing is missed; what was before, is looked for now."""
        self._health.listening()
        self._mailbox.miss()
        self._prompted.set()

    def caught_up(self) -> None:
        if not self._mailbox.missed:  # else the listener was lost again meanwhile
            self._health.caught_up()

    def _lost(self, reason: str) -> None:
        self._health.lost(reason)
        if self._probe:
            self._probe.over.set()

    # -- how it is ----------------------------------------------------------------------------------------------

    def state(self) -> BusState:
        return self._health.state

    def trouble(self) -> str:
        return self._health.trouble

    def round_trip(self) -> float:
        return self._health.round_trip

    def reconnects(self) -> int:
        return max(0, self._listener.connections - 1)

    async def _watch(self) -> None:
        """Probe at once when there is a reason, else every few seconds."""
        while True:
            self._prompted = anyio.Event()
            if self._listener.up:
                await self._send_probe()
            healthy = self._health.state is BusState.HEALTHY
            with anyio.move_on_after(self._settings.probe if healthy else min(IMPATIENT, self._settings.probe)):
                await self._prompted.wait()

    async def _send_probe(self) -> None:
        self._probe = probe = Probe(self._clock.uuid4(), self._clock.monotonic())
        self._outgoing.probe(self._own, probe.nonce)
        for _ in range(2):  # after this process stood still, what arrived meanwhile is read before it is judged
            with anyio.move_on_after(PATIENCE / 2):
                await probe.over.wait()
        self._probe = None
        if probe.took is not None:
            self._listener.proved()
            self._health.heard(probe.took)
        elif self._listener.up:
            self._health.deaf(self._outgoing.fault)
            if not self._outgoing.fault:  # else the listener may well hear the others
                self._listener.reopen()

    def _came_back(self, nonces: tuple[str, ...]) -> None:
        probe = self._probe
        if probe and probe.nonce in nonces:
            probe.took = self._clock.monotonic() - probe.started
            probe.over.set()

    def _unsent(self) -> None:
        """The probe may have been in what is dropped; and if none is under way it is time for one."""
        if self._probe:
            self._outgoing.probe(self._own, self._probe.nonce)
        self._prompted.set()
