"""Builds one hub from a configuration and takes it down in reverse order: the composition root."""

from __future__ import annotations

import gc
import logging
import os
import signal as signals_of_the_system
import socket as sockets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec

from kernel import wire
from kernel.api.app import build_app
from kernel.api.edge import Edge
from kernel.arrivals import Arrivals
from kernel.attempt import Attempts
from kernel.broker import Broker
from kernel.clock import Clock
from kernel.config import Settings
from kernel.directs import Directs
from kernel.dispatch import Dispatcher
from kernel.drain import Drain
from kernel.ends import Ends
from kernel.errors import PointsmanError, StorageUnavailable
from kernel.handover import Handover
from kernel.host import Gauges
from kernel.keyring import Keyring, session_secret
from kernel.link import Link
from kernel.links import Links
from kernel.loader import Loaded, load
from kernel.node import Node, NodeId
from kernel.observe import Observer
from kernel.plan import Planner
from kernel.pulse import Pulse
from kernel.readiness import Readiness
from kernel.ready import Ready, ready_file
from kernel.recovery import Recovery
from kernel.reports import Reports
from kernel.routing import Routing
from kernel.server import LAST_REQUESTS, Server, listening_socket, server_config, url_of
from kernel.signals import Signals
from kernel.storage import BrokerEdit, Storage
from kernel.sweeps import Judgement, Sweeps
from kernel.tokens import Minter
from kernel.waiters import Waiters
from kernel.wakeups import Wakeups

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

    def __init__(self, settings: Settings, loaded: Loaded, clock: Clock, tasks: anyio.abc.TaskGroup) -> None:
        self.settings = settings
        self.loaded = loaded
        self.clock = clock
        self.node_id = NodeId(clock.uuid4())
        self.tasks = tasks
        self.url = ""
        self.storage: Storage
        self.keyring: Keyring
        self.signals: Signals
        self.pulse: Pulse
        self.links: Links
        self.directs: Directs
        self.sweeps: Sweeps
        self.dispatcher: Dispatcher
        self.ends: Ends
        self.observer = Observer(loaded.hooks.on_transition, loaded.hooks.on_stage)

    def address(self) -> str:
        return self.url

    async def look(self) -> None:
        await self.sweeps.look()

    @property
    def gauges(self) -> Gauges:
        stats = self.loaded.hooks.stats()
        return Gauges(
            links=len(self.links),
            bus_state=self.signals.state(),
            bus_reconnects=self.signals.reconnects(),
            bus_roundtrip=self.signals.round_trip(),
            unfinished={(op, state): count for (op, state), count in self.sweeps.unfinished.counts.items()},
            stuck_messages=self.sweeps.unfinished.stuck_messages,
            late_ends=self.ends.late + self.links.late_answers,
            links_closed=dict(self.links.closed),
            links_refused=dict(self.links.refused),
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
        tasks = await stack.enter_async_context(_tasks())
        hub = Hub(settings, loaded, Clock(), tasks)
        hub.storage = await stack.enter_async_context(_storage(hub))
        hub.keyring = Keyring(session_secret(alone=not hub.storage.can_signal))
        hub.signals = hub.storage.open_signals(hub.node_id, hub.clock, settings.bus)
        await stack.enter_async_context(_pulse(hub))
        parts = _build(hub)
        listening = stack.enter_context(listening_socket(settings))
        hub.url = url_of(listening)
        await stack.enter_async_context(_started(hub))
        await stack.enter_async_context(_serving(hub, parts, listening))
        await _live(hub, parts, ready_path, told, companion)


# -- the parts, from the ground up ---------------------------------------------------------------------------


@asynccontextmanager
async def _tasks() -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _storage(hub: Hub) -> AsyncIterator[Storage]:
    storage = await hub.loaded.open_storage(hub.settings, hub.node_id)
    try:
        yield storage
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(10.0):
            await storage.close()


@asynccontextmanager
async def _pulse(hub: Hub) -> AsyncIterator[None]:
    """The node's row: written first, removed last."""
    now = hub.clock.now()
    node = Node(id=hub.node_id, started_at=now, beat_at=now, version=version("pointsman"))
    every = hub.settings.node
    hub.pulse = Pulse(
        hub.storage,
        node,
        hub.clock,
        every=every.beat,
        lost_after=every.lost_after,
        grace=every.grace,
        breaks=partial(_breaks, hub),
    )
    await hub.pulse.start()
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5.0):
            try:
                await hub.pulse.stop()
            except StorageUnavailable:
                log.warning("this node's row stays behind: the others will judge it lost")


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What runs beside the server."""

    dispatcher: Dispatcher
    drain: Drain
    recovery: Recovery
    reports: Reports
    waiters: Waiters
    wakeups: Wakeups
    readiness: Readiness
    handover: Handover


def _build(hub: Hub) -> Parts:
    storage, clock = hub.storage, hub.clock
    waiters = Waiters(storage, clock, hub.settings.bus.rekick)
    hub.links = _links(hub)
    hub.directs = _directs(hub)
    hub.ends = _ends(hub, waiters)
    hub.dispatcher = dispatcher = _dispatcher(hub, waiters)
    hub.sweeps = _sweeps(hub, waiters)
    recovery = _recovery(hub)
    drain = _drain(hub, recovery)
    reports = Reports(storage=storage, dispatcher=dispatcher, waiters=waiters, clock=clock, tasks=hub.tasks)
    hub.links.listener = Arrivals(
        dispatcher=dispatcher,
        drain=drain,
        reports=reports,
        observer=hub.observer,
        signals=hub.signals,
        waiters=waiters,
    )
    readiness = Readiness(storage=storage, pulse=hub.pulse, signals=hub.signals)
    return Parts(
        dispatcher=dispatcher,
        drain=drain,
        recovery=recovery,
        reports=reports,
        waiters=waiters,
        wakeups=_wakeups(hub, drain, waiters),
        readiness=readiness,
        handover=_handover(hub, waiters, readiness),
    )


def _links(hub: Hub) -> Links:
    return Links(
        storage=hub.storage,
        node_id=hub.node_id,
        clock=hub.clock,
        settings=hub.settings.channel,
        window=hub.settings.dispatch.window,
        tells_conflict=partial(_tell_of_conflict, hub),
    )


def _directs(hub: Hub) -> Directs:
    return Directs(
        storage=hub.storage,
        links=hub.links,
        keyring=hub.keyring,
        clock=hub.clock,
        settings=hub.settings.channel,
        every=hub.settings.sweep.nodes,
        tasks=hub.tasks,
    )


def _attempts(hub: Hub) -> Attempts:
    return Attempts(
        hooks=hub.loaded.hooks,
        agents=hub.storage,
        keyring=hub.keyring,
        clock=hub.clock,
        observer=hub.observer,
        mint=Minter(hub.keyring, hub.clock).agent_token,
        address=hub.address,
        late_grace=hub.settings.sweep.stuck,
        message_attempts=hub.settings.dispatch.message_attempts,
    )


def _ends(hub: Hub, waiters: Waiters) -> Ends:
    return Ends(
        storage=hub.storage,
        signals=hub.signals,
        waiters=waiters,
        observer=hub.observer,
        clock=hub.clock,
        node_id=hub.node_id,
        tasks=hub.tasks,
        lazy=partial(_lazy, hub),
    )


def _dispatcher(hub: Hub, waiters: Waiters) -> Dispatcher:
    return Dispatcher(
        storage=hub.storage,
        signals=hub.signals,
        links=hub.links,
        directs=hub.directs,
        waiters=waiters,
        routing=Routing(
            links=hub.links,
            observer=hub.observer,
            clock=hub.clock,
            node_id=hub.node_id,
            rank_route=hub.loaded.hooks.rank_route,
            reconnect_grace=hub.settings.dispatch.reconnect_grace,
            endpoint_answers=hub.directs.answers,
        ),
        planner=Planner(node_id=hub.node_id, keyring=hub.keyring, clock=hub.clock, spans=hub.settings.dispatch),
        attempts=_attempts(hub),
        ends=hub.ends,
        observer=hub.observer,
        pulse=hub.pulse,
        clock=hub.clock,
        settings=hub.settings.dispatch,
        tasks=hub.tasks,
    )


def _breaks(hub: Hub) -> int:
    """Connections to the database that broke."""
    return hub.storage.breaks + hub.signals.reconnects()


def _recovery(hub: Hub) -> Recovery:
    return Recovery(
        storage=hub.storage,
        links=hub.links,
        lanes=hub.dispatcher.lanes,
        ends=hub.ends,
        pulse=hub.pulse,
        observer=hub.observer,
        clock=hub.clock,
        every=hub.settings.node.beat,
        strangers_every=hub.settings.sweep.stuck,
        breaks=partial(_breaks, hub),
    )


def _drain(hub: Hub, recovery: Recovery) -> Drain:
    return Drain(
        storage=hub.storage,
        links=hub.links,
        lanes=hub.dispatcher.lanes,
        recovery=recovery,
        observer=hub.observer,
        clock=hub.clock,
        tasks=hub.tasks,
        lazy=partial(_lazy, hub),
    )


def _lazy(hub: Hub, link: Link) -> bool:
    """Claims and ends need not wait for the disk where the broker dedupes (design/dispatch.md section 7)."""
    return hub.settings.dispatch.durability == "intents" and link.can("dedupe")


def _sweeps(hub: Hub, waiters: Waiters) -> Sweeps:
    return Sweeps(
        storage=hub.storage,
        observer=hub.observer,
        waiters=waiters,
        signals=hub.signals,
        pulse=hub.pulse,
        clock=hub.clock,
        every=hub.settings.sweep,
        renew=hub.links.renew_once,
        spans=Judgement(
            lost_after=hub.settings.node.lost_after,
            stale_after=hub.settings.channel.stale_after,
            reconnect_grace=hub.settings.dispatch.reconnect_grace,
            retention=hub.settings.dispatch.retention,
        ),
    )


def _wakeups(hub: Hub, drain: Drain, waiters: Waiters) -> Wakeups:
    return Wakeups(
        signals=hub.signals,
        storage=hub.storage,
        node_id=hub.node_id,
        clock=hub.clock,
        settings=hub.settings.bus,
        drain=drain,
        dispatcher=hub.dispatcher,
        waiters=waiters,
        links=hub.links,
    )


def _handover(hub: Hub, waiters: Waiters, readiness: Readiness) -> Handover:
    return Handover(
        storage=hub.storage,
        links=hub.links,
        dispatcher=hub.dispatcher,
        waiters=waiters,
        readiness=readiness,
        pulse=hub.pulse,
        clock=hub.clock,
    )


def _tell_of_conflict(hub: Hub, broker: Broker) -> None:
    hub.tasks.start_soon(_tell_conflict, hub, broker)


async def _tell_conflict(hub: Hub, broker: Broker) -> None:
    """Two processes with one identity take the socket from each other: said once in the log and on the broker."""
    if broker.conflict:
        return
    log.error(
        "broker %s (%s): two processes use its identity by turns; give each its own with `pointsman broker register`",
        broker.name,
        broker.id,
    )
    try:
        await hub.storage.edit_broker(BrokerEdit(broker_id=broker.id, conflict=True))
    except PointsmanError as fault:
        log.warning("the conflict of broker %s is not stored: %s", broker.id, fault.message)


@asynccontextmanager
async def _started(hub: Hub) -> AsyncIterator[None]:
    hooks = hub.loaded.hooks
    await hooks.on_start.gather(hub)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(10.0):
            hub.observer.flush()
            await hooks.on_stop.gather(hub)


# -- the server ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _serving(hub: Hub, parts: Parts, listening: sockets.socket) -> AsyncIterator[None]:
    """Serve; at the end let the requests under way finish."""
    server = Server(server_config(_app(hub, parts), hub.settings))
    served = anyio.Event()

    async def serve() -> None:
        await server.serve(sockets=[listening])
        served.set()

    hub.tasks.start_soon(serve)
    while not server.started:
        await anyio.sleep(0.01)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(LAST_REQUESTS + 2.0):
            server.should_exit = True
            await served.wait()


def _app(hub: Hub, parts: Parts) -> Any:
    return build_app(
        Edge(
            host=hub,
            hooks=hub.loaded.hooks,
            dispatcher=parts.dispatcher,
            links=hub.links,
            directs=hub.directs,
            reports=parts.reports,
            readiness=parts.readiness,
            plugins=hub.loaded.rows,
        )
    )


# -- a hub's life ------------------------------------------------------------------------------------------------


async def _live(
    hub: Hub,
    parts: Parts,
    ready_path: Path | None,
    told: Callable[[Ready], None],
    companion: Companion | None,
) -> None:
    """From ready to the last claim handed back."""
    async with anyio.create_task_group() as tasks:
        for task in (
            hub.signals.run,
            hub.observer.run,
            hub.links.renew,
            hub.directs.run,
            hub.sweeps.run,
            parts.drain.note,
            parts.recovery.run,
            parts.wakeups.listen,
            parts.wakeups.poll,
        ):
            tasks.start_soon(task)
        tasks.start_soon(_drain_when_asked, hub, parts.handover)
        hub.tasks.start_soon(hub.pulse.run, lambda: _forgotten(hub))  # it beats until its row is removed
        ready = Ready(url=hub.url, token=hub.loaded.local_token(), node_id=hub.node_id, pid=os.getpid())
        async with anyio.create_task_group() as guests:
            if companion:
                guests.start_soon(companion, ready)
                with anyio.move_on_after(FIRST_LINK):
                    await hub.links.any()
            guests.start_soon(_say_ready, parts.readiness, ready_path, ready, told)
            number = await _until_told_to_stop()
            parts.handover.begin()
            guests.cancel_scope.cancel()
        await parts.handover.run(_limit(hub, number))
        tasks.cancel_scope.cancel()


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


async def _drain_when_asked(hub: Hub, handover: Handover) -> None:
    """It hands over what it holds, and stays without until it is stopped."""
    await hub.pulse.told_to_drain()
    log.info("draining: somebody asked for it")
    await handover.run(hub.settings.node.drain)


def _limit(hub: Hub, number: signals_of_the_system.Signals) -> float:
    """Seconds for the hand-over: who sits at a terminal waits less."""
    drain = hub.settings.node.drain
    return min(drain, CTRL_C) if number is signals_of_the_system.SIGINT else drain


async def _forgotten(hub: Hub) -> None:
    """Others judged this node lost while it was frozen: it holds nothing any more."""
    hub.links.hang_up_all(wire.Close.NODE_LOST, "node_lost")
    with anyio.move_on_after(5.0):
        await hub.links.empty()
