"""A hub's life: it starts from the ground up, serves, and stops in reverse order."""

from __future__ import annotations

import gc
import logging
import os
import signal as signals_of_the_system
import socket as sockets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from kernel import wire
from kernel.api.app import build_app
from kernel.api.edge import Edge
from kernel.clock import Clock
from kernel.config import Settings
from kernel.errors import StorageUnavailable
from kernel.host import Gauges
from kernel.keyring import Keyring, session_secret
from kernel.loader import Loaded, load
from kernel.node import Node, NodeId
from kernel.observe import Observer
from kernel.parts import Ground, Parts, build
from kernel.pulse import Pulse
from kernel.readiness import Readiness
from kernel.ready import Ready, ready_file
from kernel.server import LAST_REQUESTS, Server, listening_socket, server_config, url_of
from kernel.storage import Storage

log = logging.getLogger(__name__)


GARBAGE = 20_000
"""New objects between two looks of the collector; calls leave no cycles behind."""
FIRST_LINK = 10.0
"""Seconds for which the hub waits for its own broker before it says that it is ready."""
CTRL_C = 5.0
"""Seconds that a hand-over takes at most when somebody pressed Ctrl-C."""
Companion = Callable[[Ready], Coroutine[Any, Any, None]]
"""A program that lives in the hub's process while it serves, and is stopped first (`serve --with-broker`)."""


class Hub:
    """One running hub: the `Host` of its plugins."""

    def __init__(self, loaded: Loaded, ground: Ground, parts: Parts) -> None:
        self.loaded = loaded
        self.ground = ground
        self.parts = parts
        self.node_id = ground.node_id
        self.settings = ground.settings
        self.storage = ground.storage
        self.keyring = ground.keyring
        self.clock = ground.clock

    def address(self) -> str:
        return self.ground.url

    async def look(self) -> None:
        await self.parts.sweeps.look()

    @property
    def gauges(self) -> Gauges:
        story, signals, unfinished = self.parts.story, self.ground.signals, self.parts.sweeps.unfinished
        stats = self.loaded.hooks.stats()
        return Gauges(
            links=len(story.links),
            bus_state=signals.state(),
            bus_reconnects=signals.reconnects(),
            bus_roundtrip=signals.round_trip(),
            unfinished={(op, state): count for (op, state), count in unfinished.counts.items()},
            stuck_messages=unfinished.stuck_messages,
            late_ends=story.ends.late + story.links.late_answers,
            conflicts=story.conflicts.told,
            untold=self.ground.observer.dropped,
            links_closed=dict(story.links.closed),
            links_refused=dict(story.links.refused),
            storage_batch=self.storage.last_batch,
            plugin_seconds={(row.plugin, row.hook): (row.calls, row.seconds) for row in stats},
            plugin_faults={(row.plugin, row.hook): row.faults for row in stats},
        )


async def run(
    settings: Settings,
    *,
    safe_mode: bool = False,
    ready_path: Path | None = None,
    told: Callable[[Ready], None] = lambda _: None,
    companion: Companion | None = None,
) -> None:
    """Run a hub until TERM or INT.

    Raises: Misconfigured when it cannot start; nothing was changed then but what a migration did.
    """
    loaded = load(settings, safe_mode=safe_mode)
    async with AsyncExitStack() as stack:
        listening, ground = await _ground(stack, settings, loaded)
        hub = Hub(loaded, ground, build(ground))
        await stack.enter_async_context(_started(hub))
        await stack.enter_async_context(_serving(hub, listening))
        await _live(hub, ready_path, told, companion)


# -- the ground ----------------------------------------------------------------------------------------------------


async def _ground(stack: AsyncExitStack, settings: Settings, loaded: Loaded) -> tuple[sockets.socket, Ground]:
    """What the stack takes down again: tasks, storage, the beat, the socket on which it listens."""
    clock = Clock()
    node_id = NodeId(clock.uuid4())
    tasks = await stack.enter_async_context(_tasks())
    storage = await stack.enter_async_context(_storage(settings, loaded, node_id))
    keyring = Keyring(session_secret(alone=not storage.can_signal))
    signals = storage.open_signals(node_id, clock, settings.bus)

    def breaks() -> int:
        return storage.breaks + signals.reconnects()

    pulse = await stack.enter_async_context(_pulse(settings, storage, node_id, clock, breaks))
    listening = stack.enter_context(listening_socket(settings))
    return listening, Ground(
        settings=settings,
        hooks=loaded.hooks,
        clock=clock,
        node_id=node_id,
        url=url_of(listening),
        tasks=tasks,
        storage=storage,
        breaks=breaks,
        keyring=keyring,
        signals=signals,
        pulse=pulse,
        observer=Observer(loaded.hooks.on_transition, loaded.hooks.on_stage, loaded.hooks.on_request),
    )


@asynccontextmanager
async def _tasks() -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _storage(settings: Settings, loaded: Loaded, node_id: NodeId) -> AsyncIterator[Storage]:
    storage = await loaded.open_storage(settings, node_id)
    try:
        yield storage
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(10.0):
            await storage.close()


@asynccontextmanager
async def _pulse(
    settings: Settings, storage: Storage, node_id: NodeId, clock: Clock, breaks: Callable[[], int]
) -> AsyncIterator[Pulse]:
    """The node's row: written first, removed last."""
    now = clock.now()
    node = Node(id=node_id, started_at=now, beat_at=now, version=version("pointsman"))
    every = settings.node
    pulse = Pulse(storage, node, clock, every=every.beat, lost_after=every.lost_after, grace=every.grace, breaks=breaks)
    await pulse.start()
    try:
        yield pulse
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5.0):
            try:
                await pulse.stop()
            except StorageUnavailable:
                log.warning("this node's row stays behind: the others will judge it lost")


# -- plugins and the server ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _started(hub: Hub) -> AsyncIterator[None]:
    hooks = hub.loaded.hooks
    await hooks.on_start.gather(hub)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(10.0):
            hub.ground.observer.flush()
            await hooks.on_stop.gather(hub)


@asynccontextmanager
async def _serving(hub: Hub, listening: sockets.socket) -> AsyncIterator[None]:
    """Serve; at the end let the requests under way finish."""
    server = Server(server_config(_app(hub), hub.settings))
    served = anyio.Event()

    async def serve() -> None:
        await server.serve(sockets=[listening])
        served.set()

    hub.ground.tasks.start_soon(serve)
    while not server.started:
        await anyio.sleep(0.01)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(LAST_REQUESTS + 2.0):
            server.should_exit = True
            await served.wait()


def _app(hub: Hub) -> Any:
    story = hub.parts.story
    return build_app(
        Edge(
            host=hub,
            hooks=hub.loaded.hooks,
            dispatcher=story.dispatcher,
            notices=story.notices,
            observer=hub.ground.observer,
            links=story.links,
            directs=story.directs,
            reports=hub.parts.reports,
            readiness=hub.parts.readiness,
            plugins=hub.loaded.rows,
        )
    )


# -- from ready to the stop ----------------------------------------------------------------------------------------


async def _live(hub: Hub, ready_path: Path | None, told: Callable[[Ready], None], companion: Companion | None) -> None:
    """From ready to the last claim handed back."""
    parts, links = hub.parts, hub.parts.story.links
    async with anyio.create_task_group() as tasks:
        _run_beside(hub, tasks)
        hub.ground.tasks.start_soon(hub.ground.pulse.run, lambda: _forgotten(hub))  # it beats until its row is removed
        ready = Ready(url=hub.address(), token=hub.loaded.local_token(), node_id=hub.node_id, pid=os.getpid())
        async with anyio.create_task_group() as guests:
            if companion:
                guests.start_soon(companion, ready)
                with anyio.move_on_after(FIRST_LINK):
                    await links.any()
            guests.start_soon(_say_ready, parts.readiness, ready_path, ready, told)
            number = await _until_told_to_stop()
            parts.handover.begin()
            guests.cancel_scope.cancel()
        await parts.handover.run(_limit(hub, number))
        tasks.cancel_scope.cancel()


def _run_beside(hub: Hub, tasks: anyio.abc.TaskGroup) -> None:
    """What goes on beside the requests, until the last claim is handed back."""
    parts, story = hub.parts, hub.parts.story
    for task in (
        hub.ground.signals.run,
        hub.ground.observer.run,
        story.links.renew,
        story.directs.run,
        parts.sweeps.run,
        parts.drain.note,
        parts.recovery.run,
        parts.wakeups.listen,
        parts.wakeups.poll,
    ):
        tasks.start_soon(task)
    tasks.start_soon(_drain_when_asked, hub)


async def _say_ready(readiness: Readiness, path: Path | None, ready: Ready, told: Callable[[Ready], None]) -> None:
    """From when `/readyz` says so until the hub stops: a bus that is just being opened hears nothing yet."""
    await readiness.reached()
    _spare_the_collector()
    with ready_file(path, ready):
        told(ready)
        await anyio.sleep_forever()


def _spare_the_collector() -> None:
    """What was built at start lives as long as the hub: the collector need not look through it time and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


async def _until_told_to_stop() -> signals_of_the_system.Signals:
    with anyio.open_signal_receiver(signals_of_the_system.SIGTERM, signals_of_the_system.SIGINT) as received:
        async for number in received:
            log.info("stopping on %s", number.name)
            return number
    raise AssertionError("signals end only with the hub")


async def _drain_when_asked(hub: Hub) -> None:
    """It hands over what it holds, and stays without until it is stopped."""
    await hub.ground.pulse.told_to_drain()
    log.info("draining: somebody asked for it")
    await hub.parts.handover.run(hub.settings.node.drain)


def _limit(hub: Hub, number: signals_of_the_system.Signals) -> float:
    """Seconds for the hand-over: who sits at a terminal waits less."""
    drain = hub.settings.node.drain
    return min(drain, CTRL_C) if number is signals_of_the_system.SIGINT else drain


async def _forgotten(hub: Hub) -> None:
    """Others judged this node lost while it was frozen: it holds nothing any more."""
    links = hub.parts.story.links
    links.hang_up_all(wire.Close.NODE_LOST, "node_lost")
    with anyio.move_on_after(5.0):
        await links.empty()
