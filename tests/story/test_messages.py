"""Messages are durable before they are acknowledged, held while nobody can take them, and delivered in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


def texts(ours: Scene) -> list[str]:
    """What the agent was told, in the order of its effects."""
    sent = {event["dispatch"]: event["json"] for event in ours.broker.events(what="request", op="message")}
    bodies = [sent[event["dispatch"]] for event in ours.broker.effects(op="message")]
    return [body.get("message") or body["structured_message"]["msg"] for body in bodies]


async def test_a_message_is_acknowledged_with_its_id_and_state(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await ours.api.message(agent["id"], "hello")).expect(202)
    assert answer.json["messageId"] == answer.dispatch
    assert answer.json["dispatchState"] in ("pending", "in_progress", "done")
    assert answer.json["seq"] > 0
    row = await ours.api.ended(answer.dispatch)
    assert (row["op"], row["lane"], row["state"]) == ("message", "message", "done")
    await ours.check()


async def test_a_message_may_wait_for_its_delivery(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await ours.api.ask("POST", f"/agents/{agent['id']}/message", {"message": "hello"},
                                 params={"wait": "true"})).expect(200)  # fmt: skip
    assert answer.json["dispatchState"] == "done"


async def test_messages_are_held_while_the_broker_is_away_and_delivered_in_order(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    sent = [f"message {n}" for n in range(20)]
    answers = [(await ours.api.message(agent["id"], text)).expect(202) for text in sent]
    assert {answer.json["dispatchState"] for answer in answers} == {"pending"}
    assert (await ours.api.explain(answers[0].dispatch))["code"] == "waiting_broker"
    await ours.online()
    for answer in answers:
        assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    assert texts(ours) == sent
    await ours.check()


async def test_deliver_now_is_refused_while_nobody_holds_the_broker(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    answer = (await ours.api.message(agent["id"], "now", prefer="deliver=now")).expect(503)
    assert answer.code == "runtime_broker_unavailable"
    assert int(answer.headers["retry-after"]) > 0
    await ours.online()
    (await ours.api.message(agent["id"], "later", prefer="wait=20")).expect(200)
    assert texts(ours) == ["later"]


async def test_deliver_now_sets_a_short_deadline(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.api.message(agent["id"], "now", prefer="deliver=now")
    asked = await ours.broker.seen(what="request", op="message")
    assert asked["timeoutMs"] <= 30_000


@pytest.mark.parametrize("body", [{}, {"message": ""}, {"message": None}, {"structured_message": {"msg": ""}}])
async def test_an_empty_message_is_refused(ours: Scene, body: dict[str, object]) -> None:
    agent = await ours.agent()
    answer = await ours.api.ask("POST", f"/agents/{agent['id']}/message", body)
    assert answer.expect(400).code == "validation_error"
    assert ours.broker.events(what="request", op="message") == []


async def test_a_message_longer_than_64_kib_is_refused(ours: Scene) -> None:
    agent = await ours.agent()
    assert (await ours.api.message(agent["id"], "x" * 65_537)).expect(413).code == "payload_too_large"
    (await ours.api.message(agent["id"], "ü" * 32_768, prefer="wait=20")).expect(200)


async def test_the_whole_envelope_arrives_and_the_sender_is_the_caller(ours: Scene) -> None:
    agent = await ours.agent()
    said = {"msg": "read this", "type": "question", "urgent": True, "metadata": {"k": "v"}, "sender": "user:mallory"}
    body = {"structured_message": said}
    answer = await ours.api.ask("POST", f"/agents/{agent['id']}/message", body)
    await ours.api.ended(answer.expect(202).dispatch)
    got = ours.broker.events(what="request", op="message")[0]["json"]["structured_message"]
    assert (got["msg"], got["type"], got["urgent"], got["metadata"]) == ("read this", "question", True, {"k": "v"})
    assert "mallory" not in str(got)


async def test_a_message_to_a_created_agent_waits_until_it_runs(ours: Scene) -> None:
    agent = await ours.quiet_agent()
    answer = (await ours.api.message(agent["id"], "good morning")).expect(202)
    assert (await ours.api.explain(answer.dispatch))["code"] == "waiting_agent"
    assert ours.broker.events(what="request", op="message") == []
    (await ours.api.do("start", agent["id"])).expect(200)
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    await ours.check()


async def test_a_message_to_a_suspended_agent_waits_until_it_runs(ours: Scene) -> None:
    agent = await ours.agent()
    (await ours.api.do("suspend", agent["id"])).expect(200)
    answer = (await ours.api.message(agent["id"], "wake up")).expect(202)
    (await ours.api.do("start", agent["id"])).expect(200)
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"


async def test_a_message_to_a_stopped_agent_is_refused_unless_held(ours: Scene) -> None:
    agent = await ours.agent()
    (await ours.api.do("stop", agent["id"])).expect(200)
    assert (await ours.api.message(agent["id"], "hello")).expect(409).code == "invalid_state"
    held = (await ours.api.message(agent["id"], "later", prefer="deliver=hold")).expect(202)
    (await ours.api.do("start", agent["id"])).expect(200)
    assert (await ours.api.ended(held.dispatch))["state"] == "done"
    assert texts(ours) == ["later"]


async def test_a_held_message_expires_at_its_deadline_and_is_never_sent(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    answer = (await ours.api.message(agent["id"], "too late", x_dispatch_deadline="1")).expect(202)
    row = await ours.api.ended(answer.dispatch)
    assert row["state"] == "expired"
    assert row["error"]["code"]
    await ours.online()
    (await ours.api.message(agent["id"], "in time", prefer="wait=20")).expect(200)
    assert texts(ours) == ["in time"]
    await ours.check()


async def test_a_message_that_is_held_for_an_agent_ends_when_that_is_deleted(ours: Scene) -> None:
    agent = await ours.quiet_agent()
    answer = (await ours.api.message(agent["id"], "good morning")).expect(202)
    (await ours.api.delete(agent["id"])).expect(204)
    row = await ours.api.dispatch(answer.dispatch)
    assert (row["state"], row["error"]["code"]) == ("cancelled", "cancelled")
    told = await ours.api.explain(answer.dispatch)
    assert "its agent was deleted before it was delivered" in told["sentence"]
    assert ours.broker.events(what="request", op="message") == []
    await ours.check()


async def test_control_goes_before_messages_when_both_wait(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    message = (await ours.api.message(agent["id"], "hello")).expect(202)
    restart = (await ours.api.do("restart", agent["id"], prefer="deliver=hold")).expect(202)
    await ours.online()
    await ours.api.ended(message.dispatch)
    await ours.api.ended(restart.dispatch)
    effects = [event["op"] for event in ours.broker.effects() if event["op"] != "create"]
    assert effects == ["restart", "message"]
    await ours.check()


async def test_operations_of_one_agent_go_one_after_the_other(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", delay=0.1)
    answers = [await ours.api.do("restart", agent["id"], prefer="respond-async") for _ in range(6)]
    for answer in answers:
        assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    assert [e["dispatch"] for e in ours.broker.effects(op="restart")] == [answer.dispatch for answer in answers]
    await ours.check()


async def test_a_blocked_agent_delays_no_other(ours: Scene) -> None:
    blocked, free = await ours.agent(), await ours.agent()
    await ours.broker.rule(agent=blocked["slug"], gate="blocked")
    waiting = [
        await ours.api.do("stop", blocked["id"], prefer="respond-async"),
        await ours.api.message(blocked["id"], "hello"),
    ]
    await ours.broker.seen(what="effect", agent=blocked["slug"], op="stop")
    for n in range(5):
        (await ours.api.message(free["id"], f"message {n}", prefer="wait=20")).expect(200)
    (await ours.api.do("stop", free["id"])).expect(200)
    assert (await ours.api.dispatch(waiting[0].dispatch))["state"] == "in_progress"
    await ours.broker.release("blocked")
    await ours.api.ended(waiting[0].dispatch)


async def test_a_failed_message_does_not_hold_up_the_next_ones(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    answers = [(await ours.api.message(agent["id"], f"message {n}")).expect(202) for n in range(3)]
    await ours.broker.rule(op="message", times=1, status=400, body={"error": {"code": "x", "message": "no"}})
    await ours.online()
    states = [(await ours.api.ended(answer.dispatch))["state"] for answer in answers]
    assert states == ["failed", "done", "done"]
    await ours.check()


async def test_more_messages_than_the_window_all_arrive(ours: Scene) -> None:
    """Forty agents, a window of 64 and 120 messages, acknowledged while the broker is away."""
    agents = [await ours.quiet_agent() for _ in range(8)]
    for agent in agents:
        await ours.api.do("start", agent["id"])
    await ours.offline()
    answers = [await ours.api.message(agent["id"], f"m{n}") for n in range(10) for agent in agents]
    await ours.online()
    for answer in answers:
        assert (await ours.api.ended(answer.expect(202).dispatch))["state"] == "done"
    await ours.check()
