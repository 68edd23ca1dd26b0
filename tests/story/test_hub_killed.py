"""`kill -9` of the hub at each stage of an intent: nothing acknowledged is lost, nothing happens twice (P1, P2)."""

from __future__ import annotations

import random
import uuid
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest

from tests.harness.hubprocess import HubProcess
from tests.harness.scenes import Background

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


async def test_between_acceptance_and_sending(alone: Scene) -> None:
    agent = await alone.agent()
    await alone.offline()
    answers = [(await alone.api.message(agent["id"], f"m{n}")).expect(202) for n in range(10)]
    held = (await alone.api.do("restart", agent["id"], prefer="deliver=hold")).expect(202)
    alone.hub.kill()
    await alone.hub.restart()
    states = {(await alone.api.dispatch(answer.dispatch))["state"] for answer in answers}
    assert states == {"pending"}
    await alone.online()
    for answer in [held, *answers]:
        assert (await alone.api.ended(answer.dispatch))["state"] == "done"
    effects = [event["dispatch"] for event in alone.broker.effects() if event["op"] != "create"]
    assert effects == [held.dispatch, *(answer.dispatch for answer in answers)]
    await alone.check()


async def test_after_sending_and_before_the_answer(alone: Scene, tasks: TaskGroup) -> None:
    agent = await alone.agent()
    call, dispatch = await alone.held_up(tasks, "stop", agent, idempotency_key=str(uuid.uuid4()))
    alone.hub.kill()
    await call.broken()
    await alone.back()
    await alone.broker.seen(what="joined", dispatch=dispatch)
    await alone.broker.release("slow")
    row = await alone.api.ended(dispatch)
    assert row["state"] == "done"
    assert row["attempts"] >= 2
    await alone.api.agent_is(agent["id"], "stopped")
    assert len(alone.broker.effects(op="stop")) == 1
    await alone.check()


async def test_a_message_after_sending_and_before_the_answer(alone: Scene) -> None:
    agent = await alone.agent()
    await alone.broker.rule(gate="slow", op="message")
    answer = (await alone.api.message(agent["id"], "hello")).expect(202)
    await alone.broker.seen(what="effect", op="message")
    alone.hub.kill()
    await alone.back()
    await alone.broker.release("slow")
    assert (await alone.api.ended(answer.dispatch))["state"] == "done"
    assert len(alone.broker.effects(op="message")) == 1
    await alone.check()


async def test_after_the_answer_and_before_the_end_is_written(alone: Scene, tasks: TaskGroup) -> None:
    """The hub is frozen while the answer arrives in its socket's buffer, and never reads it."""
    agent, other = await alone.agent(), await alone.agent()
    await alone.broker.rule(gate="slow")
    message = (await alone.api.message(other["id"], "hello")).expect(202)
    call = Background()
    tasks.start_soon(call.run, lambda: alone.api.do("restart", agent["id"], idempotency_key=str(uuid.uuid4())))
    dispatch = (await alone.broker.seen(what="effect", op="restart"))["dispatch"]
    await alone.broker.seen(what="effect", op="message")
    assert alone.hub.child
    alone.hub.child.freeze()
    await alone.broker.release("slow")
    await alone.broker.seen(what="answer", times=4)
    alone.hub.kill()
    await call.broken()
    await alone.back()
    for one in (dispatch, message.dispatch):
        assert (await alone.api.ended(one))["state"] == "done"
        assert alone.broker.events(what="repeated", dispatch=one)
    await alone.check()


async def test_an_unrecorded_local_call_breaks_its_caller_and_takes_effect_at_most_once(
    alone: Scene, tasks: TaskGroup
) -> None:
    agent = await alone.agent()
    call, _ = await alone.held_up(tasks, "stop", agent)
    alone.hub.kill()
    await call.broken()
    await alone.broker.release("slow")
    await alone.back()
    (await alone.api.do("start", agent["id"])).expect(200)
    assert len(alone.broker.effects(op="stop")) == 1
    await alone.check()


async def test_at_random_moments_of_a_stream_of_messages(alone: Scene, tasks: TaskGroup) -> None:
    """Callers repeat each message with its key until it is acknowledged; the hub dies three times meanwhile."""
    agents = [await alone.agent() for _ in range(3)]
    chance = random.Random(6)
    finished = anyio.Event()

    async def tell(agent_id: str) -> None:
        for n in range(25):
            key = f"{agent_id}-{n}"
            while True:
                try:
                    answer = await alone.api.message(agent_id, f"m{n}", idempotency_key=key)
                except (httpx2.HTTPError, RuntimeError):
                    await anyio.sleep(0.1)
                    continue
                if answer.status == 202:
                    break
                await anyio.sleep(0.1)

    async def tell_all() -> None:
        async with anyio.create_task_group() as callers:
            for agent in agents:
                callers.start_soon(tell, agent["id"])
        finished.set()

    tasks.start_soon(tell_all)
    for _ in range(3):
        await anyio.sleep(chance.uniform(0.05, 0.4))
        alone.hub.kill()
        await alone.hub.restart()
    with anyio.fail_after(60):
        await finished.wait()
    await alone.api.broker_is(alone.broker_id, "online")
    rows = await alone.api.all_dispatches(brokerId=alone.broker_id, op="message")
    assert len(rows) == 75
    for row in rows:
        assert (await alone.api.ended(row["id"]))["state"] == "done"
    await alone.check()


async def test_a_stopped_hub_hands_back_what_it_held(alone: Scene, tasks: TaskGroup) -> None:
    agent = await alone.agent()
    _, dispatch = await alone.held_up(tasks, "stop", agent, prefer="wait=30")
    assert await alone.hub.terminate() == 0
    await alone.back()
    await alone.broker.release("slow")
    assert (await alone.api.ended(dispatch))["state"] == "done"
    assert len(alone.broker.effects(op="stop")) == 1
    await alone.check()


async def test_a_frozen_hub_goes_on_where_it_was(alone: Scene) -> None:
    agent = await alone.agent()
    assert alone.hub.child
    alone.hub.child.freeze()
    await anyio.sleep(3)
    alone.hub.child.thaw()
    await alone.api.broker_is(alone.broker_id, "online")
    (await alone.api.do("stop", agent["id"], prefer="wait=20")).expect(200)
    await alone.check()


async def test_a_second_hub_on_the_same_file_is_refused(alone: Scene) -> None:
    second = HubProcess(alone.hub.directory)
    try:
        with pytest.raises(AssertionError, match="exit 78"):
            await second.start()
    finally:
        if second.child:
            second.child.stop()
    await alone.agent()
