"""A hub, a broker and a project, ready for a story; and the check of all promises at its end."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import TaskGroup

from tests.harness.brokerprocess import BrokerProcess
from tests.harness.checker import Run, check
from tests.harness.history import History, read
from tests.harness.hubclient import Answered, HubClient, Json
from tests.harness.hubprocess import HubProcess


class Scene:
    """What most stories need. Calls go through `api`, whose record the check reads."""

    def __init__(self, hub: HubProcess, api: HubClient, broker: BrokerProcess, project: str, directory: Path) -> None:
        self.hub = hub
        self.api = api
        self.broker = broker
        self.project = project
        self.directory = directory

    @property
    def broker_id(self) -> str:
        return self.broker.broker_id

    async def agent(self, name: str | None = None, **more: Any) -> Json:
        """A running agent, made by one `create` that the broker answered."""
        return await self.api.create_agent(self.project, self.broker_id, name, **more)

    async def quiet_agent(self, name: str | None = None) -> Json:
        """An agent in phase `created`, provisioned and not started."""
        return await self.agent(name, provisionOnly=True)

    async def other_broker(self, name: str, **settings: Any) -> BrokerProcess:
        """One more broker of the same hub; the caller enters it."""
        return BrokerProcess(self.directory / name, urls=[self.hub.url], **await self.api.register_broker(), **settings)

    async def offline(self) -> None:
        """The broker left orderly and is known to be gone."""
        await self.broker.disconnect()
        await self.api.broker_is(self.broker_id, "offline")

    async def online(self) -> None:
        await self.broker.connect(self.hub.url)
        await self.api.broker_is(self.broker_id, "online")

    async def back(self) -> None:
        """The hub served again and the broker found it."""
        before = len(self.broker.history())
        await self.hub.restart()
        await self.broker.seen(what="connected", after=before)
        await self.api.broker_is(self.broker_id, "online")

    async def held_up(self, tasks: TaskGroup, op: str, agent: Json, **headers: str) -> tuple[Background, str]:
        """See `held_up`, of this broker and these calls."""
        return await held_up(tasks, self.api, self.broker, op, agent, **headers)

    async def run(self, **more: Any) -> Run:
        """Everything known, read when all intents of this broker have ended."""
        rows = await self.api.all_dispatches(brokerId=self.broker_id)
        for row in rows:
            if row["endedAt"] is None:
                await self.api.ended(row["id"])
        rows = await self.api.all_dispatches(brokerId=self.broker_id)
        return Run(calls=read(self.api.history.path), broker=self.broker.history(), rows=rows, **more)

    async def check(self, **more: Any) -> None:
        """All promises were kept. Raises: AssertionError naming those that were not."""
        check(await self.run(**more))


@asynccontextmanager
async def scene(hub: HubProcess, api: HubClient, directory: Path, **settings: Any) -> AsyncIterator[Scene]:
    """One new broker, connected, and one new project; `settings` are the scripted broker's."""
    identity = await api.register_broker()
    project = await api.create_project()
    async with BrokerProcess(directory / "broker", urls=[hub.url], **identity, **settings) as broker:
        try:
            if settings.get("auto", True):
                await broker.seen(what="connected")
                await api.broker_is(identity["broker_id"], "online")
            yield Scene(hub, api, broker, project, directory)
        except BaseException:
            _show(hub, broker)
            raise


@asynccontextmanager
async def shared_scene(hub: HubProcess, directory: Path, **settings: Any) -> AsyncIterator[Scene]:
    """A scene on a hub that other stories use too: its calls are recorded apart."""
    history = History(directory / "calls.jsonl")
    api = HubClient(hub.url, hub.ready["token"], history)
    try:
        async with scene(hub, api, directory, **settings) as made:
            yield made
    finally:
        await api.close()
        history.close()


@asynccontextmanager
async def own_scene(
    directory: Path, *, hub_settings: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[Scene]:
    """A scene on a hub of its own, which the story may kill."""
    async with (
        HubProcess(directory / "hub", settings=hub_settings) as hub,
        scene(hub, hub.api, directory, **settings) as made,
    ):
        yield made


class Background:
    """A call that goes on while the story does: its answer, or None when the connection broke."""

    def __init__(self) -> None:
        self._done = anyio.Event()
        self.answer: Answered | None = None

    async def run(self, call: Callable[[], Any]) -> None:
        try:
            self.answer = await call()
        except httpx2.HTTPError:
            self.answer = None
        finally:
            self._done.set()

    async def broken(self) -> None:
        """The connection broke without an answer."""
        with anyio.fail_after(60):
            await self._done.wait()
        assert self.answer is None, f"answered {self.answer}"

    async def answered(self) -> Answered:
        with anyio.fail_after(60):
            await self._done.wait()
        assert self.answer is not None, "the connection broke"
        return self.answer

    @property
    def running(self) -> bool:
        return not self._done.is_set()


async def held_up(
    tasks: TaskGroup, api: HubClient, broker: BrokerProcess, op: str, agent: Json, **headers: str
) -> tuple[Background, str]:
    """A call that the broker carried out and answers when `slow` is released; and its dispatch."""
    await broker.rule(op=op, gate="slow")
    call = Background()
    tasks.start_soon(call.run, lambda: api.do(op, agent["id"], **headers))
    return call, (await broker.seen(what="effect", op=op))["dispatch"]


def _show(hub: HubProcess, broker: BrokerProcess) -> None:
    for child in (hub.child, broker.child):
        if child:
            print(f"--- {child.log} (exit {child.exit_code})\n{child.tail(40)}", file=sys.stderr)
    print("--- last events of the broker", *broker.history()[-30:], sep="\n", file=sys.stderr)
