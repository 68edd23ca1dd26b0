"""Whatever a broker answers, or does not, the intent ends truthfully and takes effect at most once (P1, P2, P6)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.harness.checker import repeated_after_answer
from tests.harness.scenes import Background

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio

TEAPOT = {"error": {"code": "teapot", "message": "short and stout"}}


@pytest.mark.parametrize("status", [400, 401, 404, 409, 418, 422, 500, 502, 504])
async def test_an_error_ends_a_lifecycle_intent_at_once_with_the_brokers_words(ours: Scene, status: int) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="start", status=status, body=TEAPOT)
    answer = (await ours.api.do("start", agent["id"])).expect(502)
    assert answer.code == "runtime_error"
    assert "short and stout" in answer.text
    row = await ours.api.dispatch(answer.dispatch)
    assert (row["state"], row["attempts"]) == ("failed", 1)
    assert "short and stout" in str(row["error"])
    await ours.check()


async def test_a_failed_start_leaves_the_phase_as_it_was(ours: Scene) -> None:
    agent = await ours.agent()
    (await ours.api.do("stop", agent["id"])).expect(200)
    await ours.broker.rule(op="start", status=500, body=TEAPOT)
    (await ours.api.do("start", agent["id"])).expect(502)
    assert (await ours.api.agent(agent["id"]))["phase"] == "stopped"


async def test_an_error_body_may_be_plain_text(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="start", status=500, body="docker is not running\n")
    answer = (await ours.api.do("start", agent["id"])).expect(502)
    assert "docker is not running" in answer.text


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("op", ["stop", "message"])
async def test_later_is_tried_again_under_the_same_id(ours: Scene, op: str, status: int) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op=op, times=2, status=status, body=TEAPOT)
    if op == "message":
        answer = await ours.api.message(agent["id"], "hello", prefer="wait=20")
    else:
        answer = await ours.api.do(op, agent["id"], prefer="wait=20")
    row = await ours.api.dispatch(answer.expect(200).dispatch)
    assert (row["state"], row["attempts"], row["failures"]) == ("done", 3, 2)
    assert len(ours.broker.effects(op=op)) == 1
    await ours.check()


async def test_later_until_the_deadline_expires(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", status=503, body=TEAPOT)
    answer = await ours.api.do("stop", agent["id"], prefer="wait=20", x_dispatch_deadline="2")
    answer.expect(504)
    row = await ours.api.ended(answer.dispatch)
    assert row["state"] == "expired"
    assert row["attempts"] >= 2
    await ours.check()


async def test_a_message_is_tried_three_times_on_other_5xx(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="message", status=500, body=TEAPOT)
    answer = await ours.api.message(agent["id"], "hello", prefer="wait=20")
    row = await ours.api.ended(answer.dispatch)
    assert (row["state"], row["failures"]) == ("failed", 3)
    assert answer.status == 502
    assert len(ours.broker.events(what="request", op="message")) == 3
    await ours.check()


async def test_a_message_that_succeeds_on_its_second_try_is_done(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="message", times=1, status=500, body=TEAPOT)
    answer = (await ours.api.message(agent["id"], "hello", prefer="wait=20")).expect(200)
    assert answer.json["dispatchState"] == "done"


async def test_a_refused_message_fails_and_its_lane_moves_on(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="message", times=1, status=422, body=TEAPOT)
    first = await ours.api.message(agent["id"], "one")
    second = (await ours.api.message(agent["id"], "two", prefer="wait=20")).expect(200)
    assert (await ours.api.ended(first.dispatch))["state"] == "failed"
    assert second.json["dispatchState"] == "done"
    await ours.check()


async def test_two_answers_to_one_request_count_once(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", answer="twice")
    answer = (await ours.api.do("stop", agent["id"])).expect(200)
    (await ours.api.do("start", agent["id"])).expect(200)
    row = await ours.api.dispatch(answer.dispatch)
    assert (row["state"], row["attempts"]) == ("done", 1)
    assert (await ours.api.agent(agent["id"]))["phase"] == "running"
    await ours.check()


async def test_no_answer_until_the_deadline_is_told_as_unknown(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", answer="none")
    answer = await ours.api.do("stop", agent["id"], prefer="wait=20", x_dispatch_deadline="2")
    assert answer.expect(504).code == "outcome_unknown"
    row = await ours.api.ended(answer.dispatch)
    assert (row["state"], row["error"]["code"]) == ("expired", "outcome_unknown")
    await ours.check()


async def test_an_agent_is_not_blocked_for_ever_by_an_unanswered_call(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", times=1, answer="none")
    await ours.api.do("stop", agent["id"], prefer="respond-async", x_dispatch_deadline="2")
    assert (await ours.api.do("start", agent["id"], prefer="wait=20")).expect(200).json["phase"] == "running"


async def test_an_answer_after_its_socket_was_replaced_is_not_lost(ours: Scene, tasks: TaskGroup) -> None:
    """The late answer names a request that the new socket does not know; the re-driven one is joined to it."""
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="late", on="newest")
    call = Background()
    tasks.start_soon(call.run, lambda: ours.api.do("stop", agent["id"], prefer="wait=20"))
    await ours.broker.seen(what="effect", op="stop")
    await ours.broker.tell("dial")
    await ours.broker.seen(what="joined")
    await ours.broker.release("late")
    answer = (await call.answered()).expect(200)
    row = await ours.api.dispatch(answer.dispatch)
    assert (row["state"], row["attempts"]) == ("done", 2)
    assert len(ours.broker.effects(op="stop")) == 1
    await ours.check()


async def test_an_answer_that_outlived_its_socket_is_given_to_the_repeat(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="late")
    call = Background()
    tasks.start_soon(call.run, lambda: ours.api.do("stop", agent["id"], prefer="wait=20"))
    await ours.broker.seen(what="effect", op="stop")
    await ours.broker.disconnect(abort=True)
    await ours.broker.release("late")
    await ours.broker.seen(what="unsent")
    await ours.broker.connect()
    answer = (await call.answered()).expect(200)
    assert (await ours.api.dispatch(answer.dispatch))["state"] == "done"
    assert ours.broker.events(what="repeated", dispatch=answer.dispatch)
    assert len(ours.broker.effects(op="stop")) == 1
    await ours.check()


async def test_stale_and_late_answers_are_no_outcome(ours: Scene) -> None:
    """412 and 408 end nothing: the row decides, and the intent is tried again."""
    agent = await ours.agent()
    await ours.broker.rule(op="stop", times=1, status=412, body={"error": {"code": "stale_epoch", "message": "old"}})
    answer = await ours.api.do("stop", agent["id"], prefer="wait=20", x_dispatch_deadline="20")
    row = await ours.api.ended(answer.dispatch)
    assert row["state"] != "failed"


async def test_misshapen_answers_harm_no_other_call(ours: Scene) -> None:
    """Each of these agents waits in vain; their neighbour is served over the same socket."""
    other = await ours.agent()
    calls = []
    async with anyio.create_task_group() as tasks:
        for shape in ("not_json", "binary", "truncated", "no_status", "text_status", "bad_base64"):
            agent = await ours.agent()
            await ours.broker.rule(op="stop", agent=agent["slug"], shape=shape)
            calls.append(call := Background())
            stop = partial(ours.api.do, "stop", agent["id"], prefer="wait=20", x_dispatch_deadline="2")
            tasks.start_soon(call.run, stop)
        (await ours.api.do("stop", other["id"])).expect(200)
    for call in calls:
        spoilt = (await call.answered()).expect(502, 504)
        assert (await ours.api.ended(spoilt.dispatch))["state"] in ("failed", "expired")
    assert len(ours.broker.events(what="connected")) == 1


async def test_an_answer_above_the_frame_limit_comes_as_413(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", status=200, body={"padding": "x" * (2 << 20)})
    answer = (await ours.api.do("stop", agent["id"])).expect(502)
    assert "response_too_large" in answer.text


async def test_a_large_answer_within_the_limit_is_kept_whole(ours: Scene) -> None:
    agent = await ours.agent()
    body: dict[str, Any] = {"phase": "stopped", "log": "ü" * 100_000}
    await ours.broker.rule(op="stop", status=200, body=body)
    answer = (await ours.api.do("stop", agent["id"])).expect(200)
    assert (await ours.api.dispatch(answer.dispatch))["result"] == body


async def test_nothing_is_sent_again_once_answered(ours: Scene) -> None:
    agents = [await ours.agent() for _ in range(3)]
    for agent in agents:
        for op in ("stop", "start"):
            (await ours.api.do(op, agent["id"])).expect(200)
        (await ours.api.message(agent["id"], "hello", prefer="wait=20")).expect(200)
    run = await ours.run()
    assert repeated_after_answer(run) == []
    await ours.check()


async def test_a_refused_create_takes_the_agents_row_back(ours: Scene) -> None:
    await ours.broker.rule(op="create", status=422, body=TEAPOT)
    answer = (await ours.api.post_agent(ours.project, ours.broker_id, "gone")).expect(502)
    assert answer.code == "runtime_error"
    assert (await ours.api.dispatch(answer.dispatch))["state"] == "failed"
    agents = await ours.api.get("/agents", projectId=ours.project)
    assert agents["agents"] == []
    await ours.broker.tell("clear")
    assert (await ours.agent("gone"))["phase"] == "running"


async def test_a_create_with_unknown_outcome_leaves_the_agent_in_error(ours: Scene) -> None:
    await ours.broker.rule(op="create", answer="none")
    headers = {"Prefer": "wait=20", "X-Dispatch-Deadline": "2"}
    answer = (await ours.api.post_agent(ours.project, ours.broker_id, "maybe", headers)).expect(504)
    assert answer.code == "outcome_unknown"
    row = await ours.api.ended(answer.dispatch)
    agent = await ours.api.agent(row["agentId"])
    assert agent["phase"] == "error"
    assert agent["message"]
