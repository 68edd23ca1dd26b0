"""A broker that keeps its word (it dedupes, and refuses stale epochs) and does not stay where it is."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import anyio
import msgspec
from anyio.abc import TaskGroup

from kernel import wire
from kernel.clock import SYSTEM

if TYPE_CHECKING:
    from tests.sim.hubs import Hub, World
    from tests.sim.wires import Wire

WINDOW = 3
LATER, BROKEN = 0.15, 0.02
"""How likely a request is put off, or fails; neither has an effect."""


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """An operation took effect, once."""

    intent_id: str
    at: float


class Execution:
    """One dispatch in the inbox: its answer, or who waits for it."""

    def __init__(self) -> None:
        self.answer: wire.Response | None = None
        self.asked: list[tuple[Wire, str]] = []


class Broker:
    """Dials hubs by chance, loses sockets, moves before and after it lets go."""

    def __init__(self, world: World, broker_id: str, restlessness: float) -> None:
        self.id = broker_id
        self.effects: list[Effect] = []
        self._world = world
        self._chance: random.Random = world.chance
        self._pause = 1.0 / restlessness
        self._inbox: dict[str, Execution] = {}
        self._epoch = 0
        self._instance = SYSTEM.uuid4()

    # -- where it is ---------------------------------------------------------------------------------------------

    async def run(self, tasks: TaskGroup) -> None:
        here: Wire | None = None
        while True:
            if here is None or here.code is not None:
                here = await self._dial(tasks)
                continue
            with anyio.move_on_after(self._pause * (0.1 + self._chance.random())):
                await here.advised.wait()
            if here.advised.is_set() or not self._world.calm:
                here = await self._move(tasks, here)

    async def _move(self, tasks: TaskGroup, here: Wire) -> Wire | None:
        how = "hand over" if here.advised.is_set() else self._chance.choice(["hand over", "drop", "die", "leave"])
        match how:
            case "hand over":
                there = await self._dial(tasks)
                if there is None:
                    return here
                await anyio.sleep(self._chance.random() * 0.1)
                here.end(1000)
                return there
            case "die":
                here.dead = True
            case _:
                here.end(1006 if how == "drop" else 1000)
        await anyio.sleep(self._chance.random() * 0.3)
        return None

    async def _dial(self, tasks: TaskGroup) -> Wire | None:
        hubs = [hub for hub in self._world.hubs if hub.takes]
        if not hubs:
            await anyio.sleep(0.02)
            return None
        hub: Hub = self._chance.choice(hubs)
        there = hub.dialled(self.id)
        there.say(
            wire.Connect(
                broker_id=self.id,
                capabilities=list(wire.CAPABILITIES),
                window=WINDOW,
                last_epoch=self._epoch,
                instance=self._instance,
            )
        )
        tasks.start_soon(self._serve, tasks, there)
        with anyio.move_on_after(1.0):
            await there.connected.wait()
        if there.connected.is_set() and there.code is None:
            return there
        there.end(1006)
        await anyio.sleep(0.02)
        return None

    # -- what it does --------------------------------------------------------------------------------------------

    async def _serve(self, tasks: TaskGroup, there: Wire) -> None:
        async for frame in there.frames():
            match frame:
                case wire.Connected():
                    self._epoch = max(self._epoch, frame.epoch or 0)
                    there.connected.set()
                case wire.Reconnect():
                    there.advised.set()
                case wire.Request():
                    self._take(tasks, there, frame)

    def _take(self, tasks: TaskGroup, there: Wire, request: wire.Request) -> None:
        intent_id = request.header(wire.DISPATCH_ID) or ""
        known = self._inbox.get(intent_id)
        draw = self._chance.random()
        if int(request.header(wire.DISPATCH_EPOCH) or 0) < self._epoch:
            there.say(wire.Response(request_id=request.request_id, status_code=412))
        elif known and known.answer:
            there.say(msgspec.structs.replace(known.answer, request_id=request.request_id))
        elif known:
            known.asked.append((there, request.request_id))
        elif draw < LATER + BROKEN:
            there.say(wire.Response(request_id=request.request_id, status_code=503 if draw < LATER else 500))
        else:
            begun = self._inbox[intent_id] = Execution()
            begun.asked.append((there, request.request_id))
            tasks.start_soon(self._execute, begun, intent_id)

    async def _execute(self, begun: Execution, intent_id: str) -> None:
        self.effects.append(Effect(intent_id=intent_id, at=SYSTEM.monotonic()))
        await anyio.sleep(self._chance.random() ** 3 * (0.1 if self._chance.random() < 0.98 else 3.0))
        begun.answer = wire.Response(request_id="", status_code=200, body=b"{}")
        for there, request_id in begun.asked:
            there.say(msgspec.structs.replace(begun.answer, request_id=request_id))
