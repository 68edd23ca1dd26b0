"""Who holds a broker's socket, what an older socket can still do (nothing), and when a call waits for it (P4, P5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from tests.harness.brokerprocess import BrokerProcess
from tests.harness.scenes import Background, own_scene

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import TaskGroup

    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


async def test_the_newest_socket_wins_and_the_older_is_closed_as_replaced(ours: Scene) -> None:
    agent = await ours.agent()
    second = await ours.broker.tell("dial")
    closed = await ours.broker.seen(what="closed", socket=1)
    assert (closed["code"], closed["reason"]) == (4409, "replaced")
    (await ours.api.do("stop", agent["id"])).expect(200)
    asked = ours.broker.events(what="request", op="stop")[0]
    assert (asked["socket"], asked["epoch"]) == (second["socket"], second["connected"]["epoch"])
    assert (await ours.api.broker(ours.broker_id))["status"] == "online"
    await ours.check()


async def test_two_sockets_taking_turns_never_make_the_broker_offline(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    looking = True

    async def look() -> None:
        while looking:
            found = await ours.api.broker(ours.broker_id)
            ours.api.history.write("broker_status", broker=ours.broker_id, status=found["status"])
            await anyio.sleep(0.02)

    tasks.start_soon(look)
    for n in range(10):
        await ours.broker.tell("dial")
        (await ours.api.message(agent["id"], f"m{n}")).expect(202)
    await anyio.sleep(1)
    looking = False
    statuses = {event["status"] for event in _looks(ours)}
    assert statuses == {"online"}
    await ours.check()


def _looks(ours: Scene) -> list[dict[str, str]]:
    from tests.harness.history import read

    return [event for event in read(ours.api.history.path) if event["what"] == "broker_status"][1:]


async def test_a_late_disconnect_of_an_older_socket_changes_nothing(ours: Scene) -> None:
    """The older socket stands half-open, unread, until long after it was replaced."""
    agent = await ours.agent()
    await ours.broker.tell("pause", socket=1)
    await ours.broker.tell("dial")
    await ours.broker.tell("abort", socket=1)
    for _ in range(20):
        assert (await ours.api.broker(ours.broker_id))["status"] == "online"
        await anyio.sleep(0.1)
    (await ours.api.do("stop", agent["id"])).expect(200)
    await ours.check()


async def test_what_an_older_socket_still_answers_is_dropped(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow", times=1)
    call = Background()
    tasks.start_soon(call.run, lambda: ours.api.do("stop", agent["id"], prefer="wait=20"))
    await ours.broker.seen(what="effect", op="stop")
    await ours.broker.tell("pause", socket=1)
    await ours.broker.tell("dial")
    again = await ours.broker.seen(what="request", op="stop", times=2)
    await ours.broker.release("slow")
    row = await ours.api.dispatch((await call.answered()).expect(200).dispatch)
    assert (row["state"], row["attempts"], row["claimedEpoch"]) == ("done", 2, again["epoch"])
    assert len(ours.broker.effects(op="stop")) == 1
    await ours.check()


async def test_the_epoch_outgrows_whatever_the_broker_has_seen(ours: Scene) -> None:
    dialled = await ours.broker.tell("dial", lastEpoch=1000)
    assert dialled["connected"]["epoch"] == 1001
    again = await ours.broker.tell("dial", lastEpoch=0)
    assert again["connected"]["epoch"] == 1002


async def test_neither_joining_nor_a_heartbeat_makes_a_broker_online(ours: Scene, tmp_path: Path) -> None:
    identity = await ours.api.register_broker()
    assert (await ours.api.broker(identity["broker_id"]))["status"] == "offline"
    async with BrokerProcess(tmp_path / "b2", urls=[ours.hub.url], auto=False, **identity) as silent:
        told = await silent.tell("heartbeat", body={"status": "online"})
        assert told["status"] == 200
        after = await ours.api.broker(identity["broker_id"])
        assert after["status"] == "offline"
        assert after["lastHeartbeat"]


async def test_a_lifecycle_call_is_refused_while_nobody_holds_the_broker(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    answer = await ours.api.do("stop", agent["id"])
    assert answer.expect(503).code == "runtime_broker_unavailable"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.took < 3
    await ours.online()
    assert ours.broker.events(what="request", op="stop") == []


async def test_a_create_is_refused_while_nobody_holds_the_broker_and_leaves_no_agent(ours: Scene) -> None:
    await ours.offline()
    answer = await ours.api.post_agent(ours.project, ours.broker_id)
    assert answer.expect(503).code == "runtime_broker_unavailable"
    assert (await ours.api.get("/agents", projectId=ours.project))["agents"] == []


async def test_a_caller_may_ask_to_hold_a_lifecycle_call(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    answer = (await ours.api.do("stop", agent["id"], prefer="deliver=hold")).expect(202)
    assert answer.headers["location"].endswith(answer.dispatch)
    await anyio.sleep(2)
    assert (await ours.api.dispatch(answer.dispatch))["state"] == "pending"
    await ours.online()
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    await ours.api.agent_is(agent["id"], "stopped")
    await ours.check()


async def test_a_create_may_be_held(ours: Scene) -> None:
    await ours.offline()
    headers = {"Prefer": "deliver=hold"}
    answer = (await ours.api.post_agent(ours.project, ours.broker_id, "held", headers)).expect(202)
    await ours.online()
    row = await ours.api.ended(answer.dispatch)
    assert row["state"] == "done"
    await ours.api.agent_is(row["agentId"], "running")
    await ours.check()


async def test_between_two_sockets_a_call_waits_for_the_broker(tmp_path: Path, tasks: TaskGroup) -> None:
    async with own_scene(tmp_path, hub_settings={"dispatch.reconnect_grace": "20s"}) as alone:
        agent = await alone.agent()
        await alone.broker.disconnect(abort=True)
        call = Background()
        tasks.start_soon(call.run, lambda: alone.api.do("stop", agent["id"], prefer="wait=30"))
        await anyio.sleep(0.5)
        assert call.running
        await alone.broker.connect()
        (await call.answered()).expect(200)
        await alone.check()


async def test_a_call_between_two_sockets_ends_when_the_broker_does_not_return(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.disconnect(abort=True)
    answer = await ours.api.do("stop", agent["id"], prefer="wait=30")
    assert answer.expect(503).code == "runtime_broker_unavailable"
    assert answer.took < 20
    if "x-dispatch-id" in answer.headers:
        assert (await ours.api.ended(answer.dispatch))["state"] == "expired"
    await ours.online()
    (await ours.api.do("start", agent["id"])).expect(200)
    assert ours.broker.events(what="request", op="stop") == []


async def test_what_was_claimed_once_waits_for_the_brokers_return(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    call, dispatch = await ours.held_up(tasks, "stop", agent, prefer="wait=30")
    await ours.broker.disconnect()
    await anyio.sleep(3)
    assert (await ours.api.dispatch(dispatch))["state"] == "pending"
    await ours.broker.release("slow")
    await ours.online()
    (await call.answered()).expect(200)
    await ours.check()


async def test_a_paused_broker_gets_no_frames_until_it_is_resumed(ours: Scene) -> None:
    agent = await ours.agent()
    (await ours.api.ask("POST", f"/runtime-brokers/{ours.broker_id}/pause")).expect(200)
    assert (await ours.api.do("stop", agent["id"])).expect(503).code == "runtime_broker_paused"
    message = (await ours.api.message(agent["id"], "hello")).expect(202)
    assert (await ours.api.explain(message.dispatch))["code"] == "paused"
    assert len(ours.broker.events(what="request")) == 1
    (await ours.api.ask("POST", f"/runtime-brokers/{ours.broker_id}/resume")).expect(200)
    assert (await ours.api.ended(message.dispatch))["state"] == "done"


async def test_two_brokers_with_one_identity_are_told_apart(ours: Scene) -> None:
    """Both are served by newest-wins; the hub says once that they are two, and closes the loser with a reason."""
    mine, other = (await ours.broker.tell("state"))["instance"], "0b5c58a0-0000-4000-8000-000000000001"
    for _ in range(4):
        await ours.broker.tell("dial", instance=other)
        await ours.broker.tell("dial", instance=mine)
    closed = await ours.broker.seen(what="closed", reason="other_instance")
    assert closed["code"] == 4409
    found = await ours.api.broker(ours.broker_id)
    assert (found["conflict"], found["status"]) == (True, "online")
