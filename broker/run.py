"""Builds one broker from its settings, and takes it down in reverse order."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket as sockets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from broker.agent import AgentRecord
from broker.agents import Agents
from broker.beats import Beats
from broker.dial import Backoff, Dialler, Rejoin
from broker.endpoint import Endpoint, listening_at
from broker.endpoints import Endpoints
from broker.identity import HubAway, Identity, load_identity, register
from broker.inbox import Inbox, Unkept
from broker.recovery import Recovery
from broker.report import Reporter
from broker.runtimes.process import ProcessRuntime
from broker.serve import Desk
from broker.settings import BrokerSettings, Registration, Unusable
from kernel import wire

log = logging.getLogger(__name__)

_PRUNE = 3600.0


async def run_until_signalled(settings: BrokerSettings) -> None:
    """As a program of its own: until Ctrl-C or SIGTERM. Raises: Unusable."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when_signalled, tasks.cancel_scope)
        await run_broker(settings)
        tasks.cancel_scope.cancel()


async def _cancel_when_signalled(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            scope.cancel()


async def run_broker(settings: BrokerSettings) -> None:
    """Serve until cancelled; then stop in order, with the agents or without them.

    Raises: Unusable.
    """
    settings.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(settings.dir), _listening(settings) as listening:
        identity = await _identity(settings)
        inbox = _inbox(settings.dir / "inbox.db")
        try:
            async with anyio.create_task_group() as outer:
                broker = _Broker(settings, identity, inbox, listening)
                outer.start_soon(broker.run)
                try:
                    await broker.over.wait()
                finally:
                    with anyio.CancelScope(shield=True):
                        await broker.stop()
        finally:
            inbox.close()


class _Broker:
    """All its tasks run in a scope that an outer cancellation does not reach: `stop` ends it, in order."""

    def __init__(
        self, settings: BrokerSettings, identity: Identity, inbox: Inbox, listening: sockets.socket | None
    ) -> None:
        self.over = anyio.Event()
        self._instance = str(uuid.uuid4())
        self._listening = listening
        self._settings = settings
        self._identity = identity
        self._inbox = inbox
        self._scope = anyio.CancelScope(shield=True)
        self._runtime: ProcessRuntime | None = None
        self._dialler: Dialler | None = None
        self._endpoint: Endpoint | None = None

    async def run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    await self._serve(tasks)
        finally:
            self.over.set()

    async def _serve(self, tasks: anyio.abc.TaskGroup) -> None:
        settings, inbox = self._settings, self._inbox
        tasks.start_soon(inbox.write)
        records: dict[str, AgentRecord] = {}
        reporter = Reporter(records, settings.heartbeat)
        agents = Agents(records, reporter.mark)
        self._runtime = runtime = ProcessRuntime(settings, agents, tasks)
        endpoints = Endpoints(settings, agents, runtime, self._about())
        recovery = Recovery(agents, runtime, endpoints)
        desk = Desk(settings, inbox, agents, endpoints, recovery, reporter, tasks)
        for record in await inbox.agents():
            agents.put(record)
        await runtime.stop_strangers(set(agents.records))
        await desk.resume()
        for agent_id in list(agents.records):
            if not reporter.holds(agent_id):
                await recovery.adopt(agent_id)
        self._dialler = dialler = Dialler(
            settings, self._identity, inbox, reporter, desk, self._rejoin(), self._instance
        )
        tasks.start_soon(reporter.run)
        tasks.start_soon(reporter.keep_beating)
        tasks.start_soon(self._prune)
        if self._listening:
            self._endpoint = Endpoint(settings, lambda: dialler.identity, desk)
            tasks.start_soon(self._endpoint.run, self._listening)
        if settings.dial:
            tasks.start_soon(dialler.run, tasks)
        else:
            beats = Beats(settings, lambda: dialler.identity)
            tasks.start_soon(beats.run)
            reporter.attach(beats)

    async def stop(self) -> None:
        """Agents first, so that the hub still hears of it; then the socket; then everything else."""
        if self._runtime and self._settings.stop_agents_on_exit:
            await self._runtime.stop_all(self._settings.stop_limit)
            await anyio.sleep(0.2)
        if self._dialler:
            await self._dialler.close()
        if self._endpoint:
            await self._endpoint.close()
        self._scope.cancel()

    def _about(self) -> dict[str, Any]:
        return {
            "version": self._settings.version,
            "brokerId": self._identity.broker_id,
            "name": self._identity.name,
            "instance": self._instance,
            "window": self._settings.window,
            "capabilities": list(wire.CAPABILITIES),
            "runtimes": ["process"],
        }

    def _rejoin(self) -> Rejoin | None:
        registration = self._settings.registration
        return partial(register, self._settings, registration) if registration else None

    async def _prune(self) -> None:
        while True:
            try:
                await self._inbox.prune()
            except Unkept as fault:
                log.warning("old answers are not forgotten: %s", fault)
            await anyio.sleep(_PRUNE)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One broker at a time in a folder. Raises: Unusable."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as taken:
        raise Unusable(f"another broker runs in {folder}: stop it, or give this one a folder of its own") from taken
    finally:
        os.close(lock)


@contextmanager
def _listening(settings: BrokerSettings) -> Iterator[sockets.socket | None]:
    """Raises: Unusable."""
    if settings.listen is None:
        if not settings.dial:
            raise Unusable("a broker that does not dial must be called: say where it listens, as --listen 0.0.0.0:9810")
        yield None
        return
    with listening_at(settings.listen) as listening:
        host, port = listening.getsockname()[:2]
        log.info("listening on %s:%d", host, port)
        yield listening


def _inbox(path: Path) -> Inbox:
    """Raises: Unusable."""
    try:
        return Inbox(path)
    except Unkept as fault:
        raise Unusable(f"{path}: {fault}") from fault


async def _identity(settings: BrokerSettings) -> Identity:
    """The identity in the folder, or a new one by registering, as soon as the hub is there. Raises: Unusable."""
    found = load_identity(settings.dir)
    if found and (settings.hubs or found.hubs):
        return found
    if found:
        raise Unusable("the broker knows no hub: give its URL, as --hub http://127.0.0.1:8080")
    if settings.registration is None:
        raise Unusable(f"{settings.dir} holds no identity: register the broker first (pointsman broker register)")
    return await _register(settings, settings.registration)


async def _register(settings: BrokerSettings, registration: Registration) -> Identity:
    backoff = Backoff(settings.backoff, settings.backoff_most)
    while True:
        try:
            return await register(settings, registration)
        except HubAway as away:
            pause = backoff.pause()
            log.info("%s; next attempt in %.1f s", away, pause)
            await anyio.sleep(pause)
