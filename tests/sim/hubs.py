"""Whole kernels in one process on one database: started, stopped, killed, and cut off from each other."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import anyio
from anyio.abc import TaskGroup

from kernel import wire
from kernel.clock import SYSTEM, Clock
from kernel.config import Settings
from kernel.errors import StorageUnavailable
from kernel.hooks import Hooks
from kernel.keyring import Keyring
from kernel.node import Node, NodeId
from kernel.observe import Observer
from kernel.parts import Ground, Parts, build
from kernel.pulse import Pulse
from kernel.signals import InProcessSignals, Signal
from tests.sim.faults import Faulty, Odds
from tests.sim.wires import Wire


class World:
    """What all hubs share, and what went wrong in any."""

    def __init__(self, storage: Any, settings: Settings, odds: Odds, chance: random.Random) -> None:
        self.storage = storage
        self.settings = settings
        self.odds = odds
        self.chance = chance
        self.hubs: list[Hub] = []
        self.faults: list[BaseException] = []
        self.calm = False
        """Nothing goes wrong any more: what is unfinished has time to end."""

    def end_faults(self) -> None:
        self.calm = True
        for hub in self.hubs:
            hub.storage.calm = True

    async def start(self, tasks: TaskGroup) -> None:
        hub = Hub(self)
        await tasks.start(hub.run)


class Bus(InProcessSignals):
    """Signals to others are late, and some are lost."""

    def __init__(self, world: World, node_id: NodeId) -> None:
        super().__init__(SYSTEM)
        self._world = world
        self._node_id = node_id

    def signal(self, node_id: NodeId | None, signal: Signal) -> None:
        chance = self._world.chance
        for hub in self._world.hubs:
            if node_id not in (None, hub.node_id):
                continue
            if hub.node_id == self._node_id:
                hub.bus.hear(signal)
            elif self._world.calm or chance.random() >= self._world.odds.signal_lost:
                asyncio.get_running_loop().call_later(chance.random() ** 3 * 0.02, hub.bus.hear, signal)

    def hear(self, signal: Signal) -> None:
        super().signal(None, signal)


class Nobody:
    """Nobody counts transitions here."""

    def tell(self, *_: object) -> None: ...


class Hub:
    """A hub without HTTP: its parts, and what runs beside them."""

    def __init__(self, world: World) -> None:
        self.node_id = NodeId(SYSTEM.uuid4())
        self.storage = Faulty(world.storage, world.odds, world.chance)
        self.bus = Bus(world, self.node_id)
        self.takes = False
        """Calls and brokers may come."""
        self.killed = False
        self.parts: Parts
        self._world = world
        self._scope = anyio.CancelScope()
        self._stop = anyio.Event()
        self._tasks: TaskGroup
        self._wires: set[Wire] = set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Until it is stopped or killed."""
        try:
            with self._scope:
                async with anyio.create_task_group() as self._tasks:
                    await self._live(task_status)
                    self._tasks.cancel_scope.cancel()
        except Exception as fault:
            self._world.faults.append(fault)
        finally:
            self._leave()

    async def _live(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        pulse = self._pulse()
        self.parts = build(self._ground(pulse))
        await pulse.start()
        async with anyio.create_task_group() as beside:
            for task in self._beside():
                beside.start_soon(task)
            self._tasks.start_soon(pulse.run, self._forgotten)
            self._world.hubs.append(self)
            self.takes = True
            task_status.started()
            await self._stop.wait()
            await self.parts.handover.run(self._world.settings.node.drain)
            assert not self.parts.story.links.all(), "it holds nothing any more"
            beside.cancel_scope.cancel()
        with anyio.move_on_after(1.0):
            await self._removed(pulse)

    def _beside(self) -> Any:
        parts, links = self.parts, self.parts.story.links
        sweeps, recovery, wakeups = parts.sweeps.run, parts.recovery.run, parts.wakeups
        return (links.renew, sweeps, recovery, parts.drain.note, wakeups.listen, wakeups.poll)

    async def _forgotten(self) -> None:
        links = self.parts.story.links
        links.hang_up_all(wire.Close.NODE_LOST, "node_lost")
        with anyio.move_on_after(5.0):
            await links.empty()

    async def _removed(self, pulse: Pulse) -> None:
        try:
            await pulse.stop()
        except StorageUnavailable:
            return  # the others judge it lost

    def _pulse(self) -> Pulse:
        every, now = self._world.settings.node, SYSTEM.now()
        node = Node(id=self.node_id, started_at=now, beat_at=now, version="sim")
        spans = {"every": every.beat, "lost_after": every.lost_after, "grace": every.grace}
        return Pulse(cast("Any", self.storage), node, SYSTEM, **spans, breaks=lambda: self.storage.breaks)

    def _ground(self, pulse: Pulse) -> Ground:
        return Ground(
            settings=self._world.settings,
            hooks=Hooks(),
            clock=Clock(),
            node_id=self.node_id,
            url="http://nowhere",
            tasks=self._tasks,
            storage=cast("Any", self.storage),
            breaks=lambda: self.storage.breaks,
            keyring=Keyring("x" * 32),
            signals=self.bus,
            pulse=pulse,
            observer=Observer(Nobody(), Nobody(), Nobody()),
        )

    # -- what happens to it --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """In order."""
        self.takes = False
        self._stop.set()

    def kill(self) -> None:
        """Whatever it is at: in the middle of any await."""
        self.killed = True
        self._leave()
        self._scope.cancel()

    def _leave(self) -> None:
        self.takes = False
        if self in self._world.hubs:
            self._world.hubs.remove(self)
        for there in tuple(self._wires):
            there.end(1006)

    # -- who comes to it -----------------------------------------------------------------------------------------

    def dialled(self, broker_id: str) -> Wire:
        there = Wire(self.node_id, self._world.chance, self._wires.discard)
        self._wires.add(there)
        self.begin(self.parts.story.links.serve, there, broker_id, bytes(32))
        return there

    def begin(self, function: Any, *arguments: Any) -> None:
        """What dies with this hub."""
        self._tasks.start_soon(function, *arguments)
