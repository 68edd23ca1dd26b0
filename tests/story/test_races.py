"""What meets what at a bad moment: work that waits in its lane, answers that are no good, a broker put on pause."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from tests.harness.scenes import Background, held_up

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.hubclient import Json
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


# -- what waits behind a call that is slow ------------------------------------------------------------------------


async def test_what_waits_behind_a_slow_call_ends_at_its_own_deadline(ours: Scene, tasks: TaskGroup) -> None:
    """It is in this hub's hands, and was never sent: it did not happen, and it is told so in time."""
    agent = await ours.agent()
    first, _ = await ours.held_up(tasks, "restart", agent, prefer="wait=50")
    second = await ours.api.do("suspend", agent["id"], prefer="wait=30", x_dispatch_deadline="2", idempotency_key="k2")
    assert second.expect(504).code == "broker_timeout"
    row = await ours.api.ended(second.dispatch, patience=10)
    assert (row["state"], row["error"]["code"]) == ("expired", "broker_timeout")
    assert first.running
    await ours.broker.release("slow")
    (await first.answered()).expect(200)
    assert ours.broker.events(what="request", op="suspend") == []
    await ours.check()


async def test_what_waits_unwritten_behind_a_slow_call_ends_at_its_own_deadline(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    first, _ = await ours.held_up(tasks, "restart", agent, prefer="wait=50")
    second = await ours.api.do("suspend", agent["id"], prefer="wait=30", x_dispatch_deadline="2")
    assert second.expect(504).code == "broker_timeout"
    assert (await ours.api.ended(second.dispatch, patience=10))["state"] == "expired"
    assert first.running
    await ours.broker.release("slow")
    (await first.answered()).expect(200)
    assert ours.broker.events(what="request", op="suspend") == []
    await ours.check()


async def test_what_waits_behind_a_slow_call_is_cancelled_at_once(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    first, _ = await ours.held_up(tasks, "restart", agent, prefer="wait=50")
    second = (await ours.api.do("suspend", agent["id"], prefer="respond-async")).expect(202)
    await ours.api.state_is(second.dispatch, "in_progress")
    assert (await ours.api.cancel(second.dispatch)).expect(200).json["outcome"] == "cancel_requested"
    row = await ours.api.ended(second.dispatch, patience=10)
    assert (row["state"], row["error"]["code"]) == ("cancelled", "cancelled")
    assert first.running
    await ours.broker.release("slow")
    (await first.answered()).expect(200)
    assert ours.broker.events(what="request", op="suspend") == []
    await ours.check()


async def test_many_calls_to_a_stuck_agent_delay_no_other_agent(ours: Scene, tasks: TaskGroup) -> None:
    """More of them than the broker's window holds: they wait in one lane, and take one place."""
    stuck, other = await ours.agent(), await ours.agent()
    await ours.broker.rule(op="stop", agent=stuck["slug"], gate="slow")
    calls = [Background() for _ in range(70)]
    for call in calls:
        tasks.start_soon(call.run, lambda: ours.api.do("stop", stuck["id"], prefer="wait=50"))
    await ours.broker.seen(what="effect", op="stop", agent=stuck["slug"])
    await anyio.sleep(1)
    message = (await ours.api.message(other["id"], "hello")).expect(202)
    assert (await ours.api.ended(message.dispatch, patience=10))["state"] == "done"
    await ours.broker.release("slow")
    for call in calls:
        (await call.answered()).expect(200)


async def test_messages_that_wait_for_a_slow_operation_keep_no_place_from_other_agents(
    ours: Scene, tasks: TaskGroup
) -> None:
    async with await ours.other_broker("narrow", window=2) as narrow:
        await narrow.seen(what="connected")
        await ours.api.broker_is(narrow.broker_id, "online")
        slow, other = [await ours.api.create_agent(ours.project, narrow.broker_id) for _ in range(2)]
        call, _ = await held_up(tasks, ours.api, narrow, "restart", slow, prefer="wait=50")
        behind = (await ours.api.message(slow["id"], "after the restart")).expect(202)
        await ours.api.state_is(behind.dispatch, "in_progress")
        beside = (await ours.api.message(other["id"], "now")).expect(202)
        assert (await ours.api.ended(beside.dispatch, patience=10))["state"] == "done"
        await narrow.release("slow")
        (await call.answered()).expect(200)
        assert (await ours.api.ended(behind.dispatch))["state"] == "done"


async def test_what_waits_behind_a_deletion_is_not_started(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="delete", gate="slow")
    deletion, start = Background(), Background()
    tasks.start_soon(deletion.run, lambda: ours.api.delete(agent["id"], prefer="wait=50"))
    await ours.broker.seen(what="effect", op="delete")
    tasks.start_soon(start.run, lambda: ours.api.do("start", agent["id"], prefer="wait=50"))
    await anyio.sleep(0.5)
    await ours.broker.release("slow")
    (await deletion.answered()).expect(200, 204)
    assert (await start.answered()).expect(404).code == "not_found"
    assert ours.broker.events(what="request", op="start") == []


# -- a caller who does not want it any more ------------------------------------------------------------------------


async def test_what_the_broker_puts_off_after_a_cancel_is_not_sent_again(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", times=1, gate="slow", status=503, body="later")
    answer = (await ours.api.do("restart", agent["id"], prefer="respond-async")).expect(202)
    await ours.broker.seen(what="request", op="restart")
    assert (await ours.api.cancel(answer.dispatch)).expect(200).json["outcome"] == "cancel_requested"
    await ours.broker.release("slow")
    row = await ours.api.ended(answer.dispatch)
    assert row["state"] == "cancelled"
    assert len(ours.broker.events(what="request", op="restart")) == 1
    assert ours.broker.effects(op="restart") == []


async def test_what_waits_for_a_paused_broker_after_a_cancel_is_not_sent(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    first, _ = await ours.held_up(tasks, "restart", agent, prefer="wait=50")
    second = (await ours.api.do("suspend", agent["id"], prefer="respond-async")).expect(202)
    (await ours.api.ask("POST", f"/runtime-brokers/{ours.broker_id}/pause")).expect(200)
    await ours.broker.release("slow")
    (await first.answered()).expect(200)
    await ours.api.state_is(second.dispatch, "pending")
    assert (await ours.api.cancel(second.dispatch)).expect(200).json["outcome"] == "cancelled"
    (await ours.api.ask("POST", f"/runtime-brokers/{ours.broker_id}/resume")).expect(200)
    (await ours.api.do("stop", agent["id"])).expect(200)
    assert ours.broker.events(what="request", op="suspend") == []


# -- one key -----------------------------------------------------------------------------------------------------------


async def test_concurrent_creations_with_one_key_are_one_on_a_stock_broker(stock: Scene, tasks: TaskGroup) -> None:
    """It scopes slugs over all projects, which is asked before; a repeat must not meet its own first."""
    calls = [Background() for _ in range(12)]
    headers = {"Idempotency-Key": "one", "Prefer": "wait=50"}
    for call in calls:
        tasks.start_soon(call.run, lambda: stock.api.post_agent(stock.project, stock.broker_id, "the one", headers))
        await anyio.sleep(0.002)
    agents = {(await call.answered()).expect(201).json["agent"]["id"] for call in calls}
    assert len(agents) == 1


async def test_what_was_cancelled_and_not_sent_does_not_come_back_with_the_socket(
    ours: Scene, tasks: TaskGroup
) -> None:
    """It waited behind a slow call, unwritten until its caller went; then its socket was lost."""
    agent = await ours.agent()
    await ours.broker.rule(op="restart", gate="slow")
    first, second = Background(), Background()
    tasks.start_soon(first.run, lambda: ours.api.do("restart", agent["id"], prefer="wait=50"))
    await ours.broker.seen(what="effect", op="restart")
    tasks.start_soon(second.run, lambda: ours.api.do("suspend", agent["id"], prefer="wait=1"))
    dispatch = (await second.answered()).expect(202).dispatch
    (await ours.api.cancel(dispatch)).expect(200)
    await ours.broker.tell("abort")
    assert (await ours.api.ended(dispatch))["state"] == "cancelled"
    await ours.broker.release("slow")
    (await first.answered()).expect(200)
    assert ours.broker.events(what="request", op="suspend") == []
    await ours.check()


# -- pause -----------------------------------------------------------------------------------------------------------


async def test_a_paused_broker_gets_nothing_that_waited_in_the_hub(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", gate="slow")
    first, second = Background(), Background()
    tasks.start_soon(first.run, lambda: ours.api.do("restart", agent["id"], prefer="wait=50"))
    await ours.broker.seen(what="effect", op="restart")
    tasks.start_soon(second.run, lambda: ours.api.do("suspend", agent["id"], prefer="wait=50"))
    await anyio.sleep(0.5)
    (await ours.api.ask("POST", f"/runtime-brokers/{ours.broker_id}/pause")).expect(200)
    await ours.broker.release("slow")
    (await first.answered()).expect(200)
    await anyio.sleep(1)
    assert ours.broker.events(what="request", op="suspend") == []
    (await ours.api.ask("POST", f"/runtime-brokers/{ours.broker_id}/resume")).expect(200)
    (await second.answered()).expect(200)
    await ours.check()


# -- what the broker says --------------------------------------------------------------------------------------------

HALF_A_LETTER = '{"text": "\\ud800"}'
DEEP = "[" * 100_000
DEEP_AND_WHOLE = "[" * 900 + "]" * 900


@pytest.mark.parametrize("body", [HALF_A_LETTER, DEEP, DEEP_AND_WHOLE, '{"much": 1e999}', '{"a": NaN}', "1" * 5_000])
@pytest.mark.parametrize("status", [200, 500])
async def test_no_answer_can_hurt_the_hub(alone: Scene, body: str, status: int) -> None:
    agent = await alone.agent()
    await alone.broker.rule(op="stop", times=1, status=status, body=body)
    answer = await alone.api.do("stop", agent["id"])
    answer.expect(200 if status == 200 else 502)
    assert (await alone.api.dispatch(answer.dispatch))["state"] == ("done" if status == 200 else "failed")
    assert await alone.api.get("/dispatches", limit="10")
    (await alone.api.do("stop", agent["id"])).expect(200)


async def test_a_report_that_cannot_be_stored_hurts_nobody(alone: Scene, tasks: TaskGroup) -> None:
    """It came before the answer of the start that makes its run, so it is applied after that."""
    agent = await alone.quiet_agent()
    await alone.broker.rule(op="start", gate="slow")
    call = Background()
    tasks.start_soon(call.run, lambda: alone.api.do("start", agent["id"], prefer="wait=30"))
    asked = await alone.broker.seen(what="request", op="start")
    run = _run_of(asked)
    for detail in ({"much": 10**400}, {"deep": _nested(400)}):
        payload = {"agentId": agent["id"], "runId": run, "phase": "running", "detail": detail}
        await alone.broker.tell("send", frame={"type": "event", "event": "agent_status", "payload": payload})
    await alone.broker.release("slow")
    (await call.answered()).expect(200)
    (await alone.api.do("stop", agent["id"])).expect(200)


async def test_another_brokers_report_displaces_none(ours: Scene, tasks: TaskGroup) -> None:
    """A broker that knows the run of an agent that is not its own can say nothing about it, and silence nobody."""
    agent = await ours.quiet_agent()
    async with await ours.other_broker("other") as other:
        await other.seen(what="connected")
        await ours.broker.rule(op="start", gate="slow")
        call = Background()
        tasks.start_soon(call.run, lambda: ours.api.do("start", agent["id"], prefer="wait=30"))
        run = _run_of(await ours.broker.seen(what="request", op="start"))
        told = {"agentId": agent["id"], "runId": run, "phase": "error"}
        await ours.broker.tell("send", frame={"type": "event", "event": "agent_status", "payload": told})
        await anyio.sleep(0.3)
        lie = {**told, "phase": "running", "activity": "thinking"}
        await other.tell("send", frame={"type": "event", "event": "agent_status", "payload": lie})
        await anyio.sleep(0.3)
        await ours.broker.release("slow")
        (await call.answered()).expect(200)
    await ours.api.agent_is(agent["id"], "error", patience=10)


def _run_of(asked: Json) -> str:
    return str(asked["json"]["runId"])


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


# -- done again ------------------------------------------------------------------------------------------------------


async def test_nothing_is_done_again_for_a_deleted_agent(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", times=1, status=500, body="broken")
    failed = (await ours.api.do("restart", agent["id"])).expect(502)
    (await ours.api.delete(agent["id"])).expect(200, 204)
    (await ours.api.ask("POST", f"/dispatches/{failed.dispatch}/requeue")).expect(404, 409)
    assert len(ours.broker.events(what="request", op="restart")) == 1


# -- poison ----------------------------------------------------------------------------------------------------------


async def test_an_unwritten_call_counts_the_first_death_too(ours: Scene, tasks: TaskGroup) -> None:
    """Three deaths of the broker with it in hand are enough, also when nothing was written before the first."""
    agent = await ours.agent()
    rule = {"op": "restart", "gate": "never"}
    await ours.broker.rule(**rule)
    call = Background()
    tasks.start_soon(call.run, lambda: ours.api.do("restart", agent["id"], prefer="wait=50"))
    for times in range(1, 4):
        await ours.broker.seen(what="request", op="restart", times=times)
        ours.broker.kill()
        await ours.broker.restart(auto=False)
        await ours.broker.rule(**rule)
        await ours.online()
    dispatch = ours.broker.events(what="request", op="restart")[0]["dispatch"]
    row = await ours.api.ended(dispatch)
    assert (row["state"], row["error"]["code"]) == ("failed", "poison")
    assert len(ours.broker.events(what="request", op="restart")) == 3


# -- a broker that is deleted ----------------------------------------------------------------------------------------


async def test_a_deleted_brokers_socket_closes_with_4410(ours: Scene) -> None:
    async with await ours.other_broker("other") as other:
        await other.seen(what="connected")
        await ours.api.broker_is(other.broker_id, "online")
        (await ours.api.ask("DELETE", f"/runtime-brokers/{other.broker_id}")).expect(204)
        assert (await other.seen(what="closed"))["code"] == 4410


async def test_a_new_secret_closes_the_socket_of_the_old_one(ours: Scene) -> None:
    async with await ours.other_broker("other") as other:
        await other.seen(what="connected")
        known = await ours.api.broker(other.broker_id)
        await ours.api.register_broker(known["name"], brokerId=other.broker_id)
        assert (await other.seen(what="closed"))["code"] == 4410
