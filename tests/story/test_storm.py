"""Everything dies at random while many callers work; at the end every promise was kept (P1 to P6)."""

from __future__ import annotations

import contextlib
import random
import uuid
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest

from tests.harness.scenes import own_scene

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio

OPS = ("start", "stop", "restart", "message", "message", "message")
UNKEYED = 0.4
CALLS = 14
ROUNDS = 8


async def insist(scene: Scene, agent: str, op: str, n: int) -> None:
    """One call with one key, repeated until the hub gave an answer: acknowledged, or refused for the agent's phase."""
    key = str(uuid.uuid4())
    while True:
        try:
            if op == "message":
                answer = await scene.api.message(agent, f"m{n}", idempotency_key=key)
            else:
                answer = await scene.api.do(
                    op, agent, idempotency_key=key, prefer="respond-async, deliver=hold", x_dispatch_deadline="50"
                )
        except (httpx2.HTTPError, RuntimeError):
            await anyio.sleep(0.1)
            continue
        if answer.status in (200, 202, 409, 502):
            return
        assert answer.status == 503, answer.text
        await anyio.sleep(0.1)


async def ask_once(scene: Scene, agent: str, op: str) -> None:
    """A local call without a key: its caller may be left without an answer, and does not repeat it."""
    with contextlib.suppress(httpx2.HTTPError):
        answer = await scene.api.do(op, agent, prefer="wait=5", x_dispatch_deadline="50")
        assert answer.status in (200, 202, 502, 503, 504), answer.text


async def call_often(scene: Scene, agent: str, chance: random.Random) -> None:
    for n in range(CALLS):
        op = chance.choice(OPS)
        if op != "message" and chance.random() < UNKEYED:
            await ask_once(scene, agent, op)
        else:
            await insist(scene, agent, op, n)
        await anyio.sleep(chance.uniform(0, 0.3))


async def break_something(scene: Scene, chance: random.Random) -> str:
    fault = chance.choice(("hub", "stop", "broker", "socket", "twin", "freeze"))
    match fault:
        case "hub":
            scene.hub.kill()
            await scene.hub.restart()
        case "stop":
            await scene.hub.terminate()
            await scene.hub.restart()
        case "broker":
            scene.broker.kill()
            await scene.broker.restart()
            await scene.broker.rule(delay=0.05)
        case "socket" if (await scene.broker.tell("state"))["open"]:
            await scene.broker.tell("abort")
        case "twin":
            await scene.broker.tell("dial")
        case "freeze":
            assert scene.broker.child
            scene.broker.child.freeze()
            await anyio.sleep(chance.uniform(0.1, 0.6))
            scene.broker.child.thaw()
    return fault


@pytest.mark.parametrize(("personality", "seed"), [("ours", 1), ("ours", 2), ("stock", 3)])
async def test_every_promise_is_kept_through_a_storm(tmp_path: Path, personality: str, seed: int) -> None:
    chance = random.Random(seed)
    async with own_scene(tmp_path, personality=personality) as scene:
        agents = [(await scene.agent())["id"] for _ in range(4)]
        await scene.broker.rule(delay=0.05)
        async with anyio.create_task_group() as callers:
            for agent in agents:
                callers.start_soon(call_often, scene, agent, random.Random(chance.random()))
            for _ in range(ROUNDS):
                await anyio.sleep(chance.uniform(0.1, 0.5))
                await break_something(scene, chance)
        await scene.api.broker_is(scene.broker_id, "online")
        for agent in agents:
            (await scene.api.do("start", agent, idempotency_key=str(uuid.uuid4()), prefer="wait=40")).expect(200)
        run = await scene.run()
        assert len(run.rows) > 4 * CALLS / 2
        await scene.check(dedupes=personality == "ours")
