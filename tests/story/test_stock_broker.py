"""A stock broker dials in unchanged and is served, at least once, within what it can take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from tests.harness.scenes import Background, own_scene

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import TaskGroup

    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


async def test_every_operation_works(stock: Scene) -> None:
    agent = await stock.agent("old friend")
    assert agent["phase"] == "running"
    ops = ("stop", "start", "restart", "suspend", "start")
    phases = [(await stock.api.do(op, agent["id"])).expect(200).json["phase"] for op in ops]
    assert phases == ["stopped", "running", "running", "suspended", "running"]
    (await stock.api.message(agent["id"], "hello", prefer="wait=20")).expect(200)
    (await stock.api.delete(agent["id"])).expect(204)
    await stock.check(dedupes=False)


async def test_it_is_spoken_to_in_its_own_terms(stock: Scene) -> None:
    agent = await stock.agent()
    (await stock.api.do("start", agent["id"])).expect(200)
    (await stock.api.do("suspend", agent["id"])).expect(200)
    created, started, suspended = stock.broker.events(what="request")
    assert created["json"]["requestId"] == created["dispatch"]
    assert created["json"]["groveId"] == created["json"]["projectId"] == stock.project
    assert created["json"]["groveSlug"] == created["json"]["projectSlug"]
    assert {"projectId", "groveId"} <= {pair.split("=")[0] for pair in created["query"].split("&")}
    assert started["json"]["groveSlug"]
    needed = {"SCION_AGENT_ID", "SCION_AGENT_SLUG", "SCION_GROVE_ID", "SCION_AUTH_TOKEN", "SCION_HUB_ENDPOINT"}
    assert needed <= started["json"]["resolvedEnv"].keys()
    assert suspended["op"] == "stop"
    assert all(event["epoch"] for event in (created, started, suspended))
    assert stock.broker.events(what="dropped") == []


async def test_restart_goes_as_stop_then_start(stock: Scene) -> None:
    agent = await stock.agent()
    (await stock.api.do("restart", agent["id"])).expect(200)
    assert [event["op"] for event in stock.broker.effects()] == ["create", "stop", "start"]


async def test_its_empty_id_and_slug_are_never_taken_over(stock: Scene) -> None:
    agent = await stock.agent("keeps its name")
    found = await stock.api.agent(agent["id"])
    assert (found["slug"], found["name"]) == ("keeps-its-name", "keeps its name")


async def test_it_may_work_longer_than_it_answers_pings(tmp_path: Path) -> None:
    """While it works it reads nothing; its own pings say that it lives."""
    patient = {"dispatch.rolling_window": "30s"}
    async with own_scene(tmp_path, hub_settings=patient, personality="stock", ping_every=1.0) as alone:
        agent = await alone.agent()
        await alone.broker.rule(op="stop", delay=6.0)
        answer = (await alone.api.do("stop", agent["id"], prefer="wait=30")).expect(200, 202)
        assert (await alone.api.ended(answer.dispatch))["state"] == "done"
        assert len(alone.broker.events(what="connected")) == 1


async def test_more_calls_than_it_takes_at_once_all_end(stock: Scene) -> None:
    agents = [await stock.agent() for _ in range(4)]
    answers = [await stock.api.message(agent["id"], f"m{n}") for n in range(10) for agent in agents]
    for answer in answers:
        assert (await stock.api.ended(answer.expect(202).dispatch))["state"] == "done"
    await stock.check(dedupes=False)


async def test_what_its_socket_cannot_take_is_refused_and_never_sent(stock: Scene) -> None:
    agent = await stock.agent()
    answer = await stock.api.message(agent["id"], "x" * 60_000)
    assert answer.expect(413).code == "payload_too_large"
    (await stock.api.message(agent["id"], "short", prefer="wait=20")).expect(200)
    assert len(stock.broker.events(what="connected")) == 1


async def test_a_call_whose_socket_broke_is_sent_again(stock: Scene, tasks: TaskGroup) -> None:
    agent = await stock.agent()
    await stock.broker.rule(op="stop", times=1, gate="slow")
    call = Background()
    tasks.start_soon(call.run, lambda: stock.api.do("stop", agent["id"], prefer="wait=20"))
    dispatch = (await stock.broker.seen(what="effect", op="stop"))["dispatch"]
    await stock.broker.tell("abort")
    await stock.broker.release("slow")
    (await call.answered()).expect(200)
    assert {event["dispatch"] for event in stock.broker.effects(op="stop")} == {dispatch}
    await stock.check(dedupes=False)


async def test_a_create_that_was_answered_into_a_broken_socket_is_not_run_again(stock: Scene, tasks: TaskGroup) -> None:
    await stock.broker.rule(op="create", times=1, gate="slow")
    call = Background()
    headers = {"Prefer": "wait=20"}
    tasks.start_soon(call.run, lambda: stock.api.post_agent(stock.project, stock.broker_id, "once", headers))
    await stock.broker.seen(what="effect", op="create")
    await stock.broker.tell("abort")
    await stock.broker.release("slow")
    assert (await call.answered()).expect(201).json["agent"]["phase"] == "running"
    assert len(stock.broker.effects(op="create")) == 1
    assert len({event["json"]["requestId"] for event in stock.broker.events(what="request", op="create")}) == 1


async def test_one_slug_over_all_projects(stock: Scene) -> None:
    agent = await stock.agent("alone here")
    other = await stock.api.create_project()
    answer = await stock.api.post_agent(other, stock.broker_id, "alone here")
    assert answer.expect(409).code == "already_exists"
    (await stock.api.delete(agent["id"])).expect(204)
    (await stock.api.post_agent(other, stock.broker_id, "alone here")).expect(201)


async def test_its_heartbeat_is_believed_when_nothing_is_under_way(stock: Scene) -> None:
    agent = await stock.agent()
    (await stock.api.do("stop", agent["id"])).expect(200)
    agents = [{"slug": agent["slug"], "status": "running", "phase": "running", "containerStatus": "Up"}]
    beat = {"status": "online", "groves": [{"groveId": stock.project, "agentCount": 1, "agents": agents}]}
    assert (await stock.broker.tell("heartbeat", body=beat))["status"] == 200
    assert (await stock.api.agent(agent["id"]))["phase"] == "stopped"
    await anyio.sleep(6)
    assert (await stock.broker.tell("heartbeat", body=beat))["status"] == 200
    assert (await stock.api.agent(agent["id"]))["phase"] == "running"


async def test_a_heartbeat_without_agents_is_taken(stock: Scene) -> None:
    assert (await stock.broker.tell("heartbeat"))["status"] == 200
    assert (await stock.api.broker(stock.broker_id))["lastHeartbeat"]


async def test_it_comes_back_within_milliseconds_and_is_served_again(stock: Scene) -> None:
    agent = await stock.agent()
    for n in range(3):
        await stock.broker.tell("abort")
        await stock.broker.seen(what="connected", times=n + 2)
    await stock.api.broker_is(stock.broker_id, "online")
    (await stock.api.do("stop", agent["id"], prefer="wait=20")).expect(200)


async def test_a_storm_of_claims_is_slowed_at_the_upgrade(stock: Scene) -> None:
    refused = None
    for _ in range(12):
        told = await stock.broker.tell("dial")
        if "refused" in told:
            refused = told["refused"]
            break
    assert refused is not None
    assert refused["status"] == 429
    assert refused["headers"]["retry-after"]
    assert (await stock.api.broker(stock.broker_id))["status"] == "online"
