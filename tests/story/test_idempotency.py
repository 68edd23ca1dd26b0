"""One key is one wish, however often, however early and whatever dies in between."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from tests.harness.scenes import Background

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


def new_key() -> str:
    return f"key-{uuid.uuid4()}"


async def test_a_repeat_gives_the_same_answer_and_no_second_intent(ours: Scene) -> None:
    agent = await ours.agent()
    key = new_key()
    first = (await ours.api.do("stop", agent["id"], idempotency_key=key)).expect(200)
    second = (await ours.api.do("stop", agent["id"], idempotency_key=key)).expect(200)
    assert second.dispatch == first.dispatch
    assert len(ours.broker.effects(op="stop")) == 1
    await ours.check()


async def test_the_same_key_for_another_request_is_a_conflict(ours: Scene) -> None:
    agent, other = await ours.agent(), await ours.agent()
    key = new_key()
    (await ours.api.do("stop", agent["id"], idempotency_key=key)).expect(200)
    for answer in (
        await ours.api.do("stop", other["id"], idempotency_key=key),
        await ours.api.do("start", agent["id"], idempotency_key=key),
        await ours.api.message(agent["id"], "hello", idempotency_key=key),
    ):
        assert answer.expect(409).code == "idempotency_conflict"
    assert len(ours.broker.effects(op="start")) == 0


async def test_concurrent_repeats_wait_for_the_first(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    key = new_key()
    calls = [Background() for _ in range(4)]
    for call in calls:
        tasks.start_soon(call.run, lambda: ours.api.do("stop", agent["id"], idempotency_key=key, prefer="wait=20"))
    await ours.broker.seen(what="effect", op="stop")
    await ours.broker.release("slow")
    answers = [(await call.answered()).expect(200) for call in calls]
    assert len({answer.dispatch for answer in answers}) == 1
    assert len(ours.broker.effects(op="stop")) == 1
    await ours.check()


async def test_a_message_with_a_key_is_sent_once(ours: Scene) -> None:
    agent = await ours.agent()
    key = new_key()
    first = (await ours.api.message(agent["id"], "hello", idempotency_key=key)).expect(202)
    second = await ours.api.message(agent["id"], "hello", idempotency_key=key)
    assert second.json["messageId"] == first.json["messageId"]
    await ours.api.ended(first.dispatch)
    assert len(ours.broker.effects(op="message")) == 1


@pytest.mark.parametrize(("status", "state"), [(200, "done"), (400, "failed")])
async def test_who_did_not_wait_gets_the_same_answer_once_it_has_ended(ours: Scene, status: int, state: str) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="message", times=1, status=status)
    key = new_key()
    first = (await ours.api.message(agent["id"], "hello", idempotency_key=key)).expect(202)
    assert (await ours.api.ended(first.dispatch))["state"] == state
    second = (await ours.api.message(agent["id"], "hello", idempotency_key=key)).expect(202)
    assert second.dispatch == first.dispatch
    assert second.json == {**first.json, "dispatchState": state}


async def test_a_create_with_a_key_makes_one_agent(ours: Scene) -> None:
    key = {"Idempotency-Key": new_key()}
    first = (await ours.api.post_agent(ours.project, ours.broker_id, "once", key)).expect(201)
    second = (await ours.api.post_agent(ours.project, ours.broker_id, "once", key)).expect(201)
    assert second.json["agent"]["id"] == first.json["agent"]["id"]
    assert len(ours.broker.effects(op="create")) == 1


async def test_a_failure_is_repeated_too(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", times=1, status=500, body={"error": {"code": "x", "message": "broken"}})
    key = new_key()
    first = (await ours.api.do("stop", agent["id"], idempotency_key=key)).expect(502)
    second = (await ours.api.do("stop", agent["id"], idempotency_key=key)).expect(502)
    assert second.dispatch == first.dispatch
    assert len(ours.broker.events(what="request", op="stop")) == 1


async def test_a_key_survives_the_hub(alone: Scene) -> None:
    agent = await alone.agent()
    key = new_key()
    first = (await alone.api.do("stop", agent["id"], idempotency_key=key)).expect(200)
    alone.hub.kill()
    await alone.hub.restart()
    await alone.broker.seen(what="connected", times=2)
    second = (await alone.api.do("stop", agent["id"], idempotency_key=key)).expect(200)
    other = await alone.api.do("start", agent["id"], idempotency_key=key)
    assert second.dispatch == first.dispatch
    assert other.expect(409).code == "idempotency_conflict"
    assert len(alone.broker.effects(op="stop")) == 1


async def test_a_repeat_after_the_hub_died_in_mid_call_finds_the_first(alone: Scene, tasks: TaskGroup) -> None:
    agent = await alone.agent()
    await alone.broker.rule(op="stop", gate="slow")
    key = new_key()
    call = Background()
    tasks.start_soon(call.run, lambda: alone.api.do("stop", agent["id"], idempotency_key=key))
    dispatch = (await alone.broker.seen(what="effect", op="stop"))["dispatch"]
    alone.hub.kill()
    await call.broken()
    await alone.hub.restart()
    await alone.broker.release("slow")
    answer = (await alone.api.do("stop", agent["id"], idempotency_key=key, prefer="wait=20")).expect(200)
    assert answer.dispatch == dispatch
    assert len(alone.broker.effects(op="stop")) == 1
    await alone.check()


async def test_a_repeat_is_not_refused_what_its_first_was_not(ours: Scene) -> None:
    """Its agent is deleted, stopped, or its broker gone by then: a repeat is told how the first one went."""
    agent, stopped = await ours.agent(), await ours.agent()
    keys = [new_key() for _ in range(4)]
    said = (await ours.api.message(stopped["id"], "hello", idempotency_key=keys[0])).expect(202)
    await ours.api.ended(said.dispatch)
    stop = (await ours.api.do("stop", stopped["id"], idempotency_key=keys[1])).expect(200)
    gone = (await ours.api.delete(agent["id"], idempotency_key=keys[2])).expect(204)
    assert (await ours.api.delete(agent["id"], idempotency_key=keys[2])).expect(204).dispatch == gone.dispatch
    assert (await ours.api.message(stopped["id"], "hello", idempotency_key=keys[0])).expect(
        202
    ).dispatch == said.dispatch
    await ours.offline()
    assert (await ours.api.do("stop", stopped["id"], idempotency_key=keys[1])).expect(200).dispatch == stop.dispatch
    assert (await ours.api.do("stop", stopped["id"], idempotency_key=keys[3])).expect(503).code == (
        "runtime_broker_unavailable"
    )
    assert (await ours.api.delete(agent["id"], idempotency_key=keys[3])).expect(409).code == "invalid_state"
    await ours.online()
    assert len(ours.broker.effects(op="stop")) == 1
    await ours.check()


async def test_a_registration_that_is_repeated_gives_the_same_join_token(ours: Scene) -> None:
    key = {"Idempotency-Key": new_key()}
    wanted = {"name": f"broker-{uuid.uuid4().hex[:8]}"}
    first = (await ours.api.ask("POST", "/brokers", wanted, headers=key)).expect(201)
    second = (await ours.api.ask("POST", "/brokers", wanted, headers=key)).expect(201)
    assert second.json == first.json
    join = {"brokerId": first.json["brokerId"], "joinToken": second.json["joinToken"], "hostname": "h", "version": "1"}
    (await ours.api.ask("POST", "/brokers/join", join)).expect(200)
    assert (await ours.api.ask("POST", "/brokers", wanted, headers=key)).json == first.json
    other = await ours.api.ask("POST", "/brokers", {"name": "another"}, headers=key)
    assert other.expect(409).code == "idempotency_conflict"
    fresh = (await ours.api.ask("POST", "/brokers", wanted)).expect(201).json
    assert fresh["reregistered"]
    assert fresh["joinToken"] != first.json["joinToken"]
