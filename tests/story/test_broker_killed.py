"""`kill -9` of the broker in the middle of an operation, and its return: once, not twice (P1, P2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.scenes import Background

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


async def reborn(ours: Scene, **rule: Any) -> None:
    """Kills the broker and starts it again on its directory, with one rule in place before it dials."""
    ours.broker.kill()
    await ours.broker.restart(auto=False)
    if rule:
        await ours.broker.rule(**rule)
    await ours.online()


async def test_after_the_effect_and_before_the_answer(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    call, _ = await ours.held_up(tasks, "stop", agent, prefer="wait=30")
    await reborn(ours)
    answer = (await call.answered()).expect(200)
    row = await ours.api.dispatch(answer.dispatch)
    assert (row["state"], row["attempts"]) == ("done", 2)
    assert len(ours.broker.effects(op="stop")) == 1
    await ours.check()


async def test_before_the_effect(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow", effect="after")
    call = Background()
    tasks.start_soon(call.run, lambda: ours.api.do("stop", agent["id"], prefer="wait=30"))
    await ours.broker.seen(what="request", op="stop")
    await reborn(ours)
    (await call.answered()).expect(200)
    assert len(ours.broker.effects(op="stop")) == 1
    await ours.check()


async def test_in_the_middle_of_a_create(ours: Scene, tasks: TaskGroup) -> None:
    await ours.broker.rule(op="create", gate="slow")
    call = Background()
    headers = {"Prefer": "wait=30"}
    tasks.start_soon(call.run, lambda: ours.api.post_agent(ours.project, ours.broker_id, "born twice", headers))
    await ours.broker.seen(what="effect", op="create")
    await reborn(ours)
    agent = (await call.answered()).expect(201).json["agent"]
    assert agent["phase"] == "running"
    assert len(ours.broker.effects(op="create")) == 1
    await ours.check()


async def test_while_many_agents_are_served(ours: Scene) -> None:
    agents = [await ours.agent() for _ in range(5)]
    await ours.broker.rule(op="message", gate="slow")
    answers = [(await ours.api.message(agent["id"], f"m{n}")).expect(202) for n in range(4) for agent in agents]
    await ours.broker.seen(what="effect", op="message", times=5)
    await reborn(ours)
    for answer in answers:
        assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    await ours.check()


async def test_what_was_in_flight_at_three_deaths_is_poison(ours: Scene) -> None:
    agent = await ours.agent()
    rule = {"op": "restart", "gate": "never"}
    await ours.broker.rule(**rule)
    answer = await ours.api.do("restart", agent["id"], prefer="respond-async")
    for times in range(1, 4):
        await ours.broker.seen(what="request", op="restart", times=times)
        await reborn(ours, **rule)
    row = await ours.api.ended(answer.dispatch)
    assert (row["state"], row["error"]["code"]) == ("failed", "poison")
    assert len(ours.broker.events(what="request", op="restart")) == 3
    await ours.broker.tell("clear")
    (await ours.api.do("stop", agent["id"])).expect(200)
    await ours.check()


async def test_deaths_of_the_socket_alone_are_no_poison(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", gate="slow")
    answer = await ours.api.do("restart", agent["id"], prefer="respond-async")
    for times in range(1, 5):
        await ours.broker.seen(what="request", op="restart", times=times)
        await ours.broker.tell("abort")
    await ours.broker.seen(what="request", op="restart", times=5)
    await ours.broker.release("slow")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    assert len(ours.broker.effects(op="restart")) == 1
    await ours.check()


async def test_a_dead_broker_is_offline_and_calls_are_refused(ours: Scene) -> None:
    agent = await ours.agent()
    ours.broker.kill()
    await ours.api.broker_is(ours.broker_id, "offline")

    answer = await ours.api.do("stop", agent["id"], prefer="wait=20")
    assert answer.expect(503).code == "runtime_broker_unavailable"
    assert answer.headers["retry-after"]
