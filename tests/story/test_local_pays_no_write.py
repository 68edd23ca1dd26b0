"""P7: on the LOCAL path the frame leaves before anything is written. Proven by a database that cannot be written."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from tests.harness.scenes import Background, Scene, own_scene

pytestmark = pytest.mark.anyio


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Scene]:
    async with own_scene(tmp_path, hub_settings={"server.database_deadline": "30s"}) as made:
        yield made


@contextmanager
def write_locked(scene: Scene) -> Iterator[None]:
    """Nobody else can write the hub's database; reading goes on."""
    connection = sqlite3.connect(scene.hub.directory / "hub.db", isolation_level=None, timeout=10)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@pytest.mark.parametrize("op", ["stop", "start", "restart", "suspend"])
async def test_the_frame_leaves_while_nothing_can_be_written(own: Scene, op: str) -> None:
    agent = await own.agent()
    before = len(own.broker.history())
    call = Background()
    async with anyio.create_task_group() as tasks:
        with write_locked(own):
            tasks.start_soon(call.run, lambda: own.api.do(op, agent["id"]))
            await own.broker.seen(after=before, what="effect", op=op, patience=2.0)
            assert call.running, "an answer before its end was durable"
        answer = (await call.answered()).expect(200)
    assert (await own.api.dispatch(answer.dispatch))["state"] == "done"


async def test_a_call_with_a_key_is_written_before_its_frame(own: Scene) -> None:
    agent = await own.agent()
    before = len(own.broker.history())
    call = Background()
    async with anyio.create_task_group() as tasks:
        with write_locked(own):
            tasks.start_soon(call.run, lambda: own.api.do("stop", agent["id"], idempotency_key="only-once"))
            await anyio.sleep(1.0)
            assert not [event for event in own.broker.history()[before:] if event["what"] == "request"]
        (await call.answered()).expect(200)
