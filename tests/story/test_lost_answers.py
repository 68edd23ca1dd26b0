"""The command line when each first answer is lost on its way: the true outcome, and one effect."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.harness.command_line import Ran, pointsman
from tests.harness.scenes import Scene
from tests.harness.scripted_hub import Answer, Asked, Cut, Reply, ScriptedHub

pytestmark = pytest.mark.anyio
HOP = frozenset({"host", "connection", "content-length", "accept-encoding"})


class Relay:
    """Hands requests on to the hub, and loses the first answer to each change."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=f"{url}/api/v1", timeout=60, trust_env=False)
        self._lost: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Answer:
        headers = {name: value for name, value in asked.headers.items() if name not in HOP}
        got = self._http.request(
            asked.method, asked.path, params=asked.query or None, headers=headers, content=asked.body or None
        )
        key = asked.headers.get("idempotency-key")
        with self._lock:
            if key and key not in self._lost:
                self._lost.add(key)
                return Cut()
        kept = {name: value for name, value in got.headers.items() if name not in HOP}
        return Reply(status=got.status_code, raw=got.content, headers=kept)

    def close(self) -> None:
        self._http.close()


@pytest.fixture
async def relayed(ours: Scene) -> AsyncIterator[ScriptedHub]:
    relay = Relay(ours.hub.url)
    with ScriptedHub(otherwise=relay).running() as between:
        yield between
    relay.close()


async def run(scene: Scene, relayed: ScriptedHub, cwd: Path, *arguments: str) -> Ran:
    where = {"POINTSMAN_HUB": relayed.url, "POINTSMAN_TOKEN": scene.hub.ready["token"]}
    return await anyio.to_thread.run_sync(lambda: pointsman(*arguments, cwd=cwd, extra=where))


@pytest.mark.parametrize(
    "arguments",
    [("start",), ("stop",), ("restart",), ("suspend",), ("delete",), ("message", "--wait")],
    ids=lambda arguments: str(arguments[0]),
)
async def test_an_operation_whose_answer_was_lost_is_done_once(
    ours: Scene, relayed: ScriptedHub, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    agent = await ours.agent()
    words = ("hello",) if arguments[0] == "message" else ()
    ran = await run(ours, relayed, tmp_path, "agent", *arguments, agent["id"], *words)
    assert (ran.status, ran.err) == (0, "")
    assert len(ours.broker.effects(op=arguments[0])) == 1
    sent = [asked for asked in relayed.asked if "idempotency-key" in asked.headers]
    assert len(sent) == 2
    assert len({asked.headers["idempotency-key"] for asked in sent}) == 1


async def test_a_creation_whose_answer_was_lost_makes_one_agent(
    ours: Scene, relayed: ScriptedHub, tmp_path: Path
) -> None:
    placed = ("--project", ours.project, "--broker", ours.broker_id)
    ran = await run(ours, relayed, tmp_path, "agent", "create", "Lost", *placed, "--", "true")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("lost running (")
    assert len(ours.broker.effects(op="create")) == 1


async def test_a_project_whose_answer_was_lost_is_made_once(ours: Scene, relayed: ScriptedHub, tmp_path: Path) -> None:
    ran = await run(ours, relayed, tmp_path, "project", "create", f"only-{ours.project}")
    assert ran.status == 0
    listed = await run(ours, relayed, tmp_path, "project", "list")
    assert listed.out.count(f"only-{ours.project}") == 2  # once as slug, once as name


async def test_a_hub_that_is_killed_and_comes_back_tells_the_outcome(alone: Scene, tmp_path: Path) -> None:
    agent = await alone.agent()
    await alone.broker.rule(gate="slow", op="stop")
    where = {"POINTSMAN_HUB": alone.hub.url, "POINTSMAN_TOKEN": alone.hub.ready["token"]}
    told: list[Ran] = []

    async def stop() -> None:
        ran = await anyio.to_thread.run_sync(lambda: pointsman("agent", "stop", agent["id"], cwd=tmp_path, extra=where))
        told.append(ran)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        await alone.broker.seen(what="effect", op="stop")
        alone.hub.kill()
        await alone.hub.restart()
        await alone.broker.release("slow")
    assert (told[0].status, told[0].out.split(": ")[0]) == (0, f"{agent['slug']} stopped\n")
    assert len(alone.broker.effects(op="stop")) == 1
    await alone.check()
