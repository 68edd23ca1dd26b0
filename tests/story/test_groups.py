"""One call, many agents: all in one transaction, each exactly once and in order, each with an outcome of its own."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.harness.hubclient import Answered
from tests.harness.processes import eventually

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.brokerprocess import BrokerProcess
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio
Json = dict[str, Any]


async def broadcast(ours: Scene, text: str, **headers: str) -> Answered:
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    body = {"structured_message": {"msg": text, "type": "notice"}}
    return await ours.api.ask("POST", f"/projects/{ours.project}/broadcast", body, headers=named)


async def to_group(ours: Scene, agent: Json, recipient: str, text: str = "hello", **headers: str) -> Answered:
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    body = {"structured_message": {"msg": text, "recipient": recipient, "metadata": {"k": "v"}}}
    return await ours.api.ask("POST", f"/agents/{agent['id']}/message", body, headers=named)


async def batch(ours: Scene, messages: list[Json], **headers: str) -> Answered:
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return await ours.api.ask("POST", "/messages/batch", {"messages": messages}, headers=named)


def said(broker: BrokerProcess, slug: str) -> list[str]:
    """What one agent was told, in the order of its effects."""
    sent = {event["dispatch"]: event["json"] for event in broker.events(what="request", op="message")}
    bodies = [sent[event["dispatch"]] for event in broker.effects(op="message", agent=slug)]
    return [body.get("message") or body["structured_message"]["msg"] for body in bodies]


async def all_done(ours: Scene, group_id: str, count: int) -> list[Json]:
    async def probe() -> list[Json] | None:
        rows = await ours.api.all_dispatches(groupId=group_id)
        return rows if len(rows) == count and all(row["endedAt"] for row in rows) else None

    return await eventually(probe, f"{count} messages of group {group_id} ended", patience=120)


async def many_agents(ours: Scene, count: int, broker_id: str | None = None, **more: Any) -> list[Json]:
    made: list[Json] = []

    async def make() -> None:
        made.append(await ours.api.create_agent(ours.project, broker_id or ours.broker_id, **more))

    for start in range(0, count, 10):
        async with anyio.create_task_group() as tasks:
            for _ in range(min(10, count - start)):
                tasks.start_soon(make)
    return made


async def test_sixty_agents_of_two_brokers_are_told_once_each_and_in_order(ours: Scene) -> None:
    async with await ours.other_broker("second") as second:
        await second.seen(what="connected")
        agents = await many_agents(ours, 30) + await many_agents(ours, 30, second.broker_id)
        answers = [(await broadcast(ours, f"notice {n}")).expect(202) for n in range(3)]
        for answer in answers:
            results = answer.json["results"]
            assert {one["agentId"] for one in results} == {agent["id"] for agent in agents}
            assert len({one["messageId"] for one in results}) == 60
            assert {one["dispatchState"] for one in results} == {"pending"}
            rows = await all_done(ours, answer.json["groupId"], 60)
            assert {row["state"] for row in rows} == {"done"}
            assert {row["id"] for row in rows} == {one["messageId"] for one in results}
        for broker, owned in ((ours.broker, agents[:30]), (second, agents[30:])):
            for agent in owned:
                assert said(broker, agent["slug"]) == ["notice 0", "notice 1", "notice 2"]
        for state in ("pending", "in_progress"):
            assert await ours.api.all_dispatches(projectId=ours.project, state=state) == []


async def test_a_broadcast_is_told_as_one_and_arrives_whole(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await broadcast(ours, "to all")).expect(202)
    assert answer.headers["location"] == f"/api/v1/dispatches?groupId={answer.json['groupId']}"
    await all_done(ours, answer.json["groupId"], 1)
    got = ours.broker.events(what="request", op="message")[0]["json"]["structured_message"]
    assert (got["msg"], got["type"], got["broadcasted"]) == ("to all", "notice", True)
    assert got["recipient"] == f"agent:{agent['slug']}"
    assert got["sender"].startswith("user:")


async def test_a_project_larger_than_a_page_is_told_completely(ours: Scene) -> None:
    agents = await many_agents(ours, 215)
    answer = (await broadcast(ours, "to all")).expect(202)
    assert [one["agentId"] for one in answer.json["results"]] == [
        agent["id"] for agent in sorted(agents, key=lambda agent: (agent["created"], agent["id"]))
    ]
    rows = await all_done(ours, answer.json["groupId"], 215)
    assert {row["state"] for row in rows} == {"done"}
    assert len(ours.broker.effects(op="message")) == 215


async def test_a_project_without_agents_is_told_so(ours: Scene) -> None:
    assert (await broadcast(ours, "anybody?")).expect(202).json["results"] == []
    (await ours.api.ask("POST", "/projects/nothing/broadcast", {"message": "x"})).expect(404)
    (await ours.api.ask("POST", f"/projects/{ours.project}/broadcast", {"message": " "})).expect(400)


async def test_what_one_agent_cannot_take_is_refused_to_it_alone(ours: Scene) -> None:
    running, stopped, quiet = await ours.agent(), await ours.agent(), await ours.quiet_agent()
    (await ours.api.do("stop", stopped["id"])).expect(200)
    gone = await ours.agent()
    (await ours.api.delete(gone["id"])).expect(204)
    answer = (await broadcast(ours, "hello")).expect(202)
    results = {one["agentId"]: one for one in answer.json["results"]}
    assert set(results) == {running["id"], stopped["id"], quiet["id"]}
    assert results[stopped["id"]]["messageId"] is None
    assert results[stopped["id"]]["dispatchState"] == "none"
    assert results[stopped["id"]]["error"]["code"] == "invalid_state"
    assert "error" not in results[running["id"]]
    await ours.api.ended(results[running["id"]]["messageId"])
    assert (await ours.api.explain(results[quiet["id"]]["messageId"]))["code"] == "waiting_agent"
    held = (await broadcast(ours, "later", prefer="deliver=hold")).expect(202)
    assert all(one["messageId"] for one in held.json["results"])
    for agent in (stopped, quiet):
        (await ours.api.do("start", agent["id"])).expect(200)
    await all_done(ours, answer.json["groupId"], 2)
    await all_done(ours, held.json["groupId"], 3)
    assert said(ours.broker, stopped["slug"]) == ["later"]
    assert said(ours.broker, quiet["slug"]) == ["hello", "later"]
    await ours.check()


@pytest.mark.parametrize("spelling", ["group", "set"])
async def test_a_group_names_its_agents(ours: Scene, spelling: str) -> None:
    one, other, third = await ours.agent(), await ours.agent(), await ours.agent()
    recipient = f"{spelling}[{one['slug']}, agent:{other['slug']},{one['id']},nobody,user:dev]"
    answer = (await to_group(ours, third, recipient)).expect(202)
    told = answer.json["results"]
    assert [result["recipient"] for result in told] == [
        f"agent:{one['slug']}", f"agent:{other['slug']}", "nobody", "user:dev",
    ]  # fmt: skip
    assert [(result.get("error") or {}).get("code") for result in told] == [
        None, None, "not_found", "validation_error",
    ]  # fmt: skip
    await all_done(ours, answer.json["groupId"], 2)
    got = ours.broker.events(what="request", op="message", agent=other["slug"])[0]["json"]["structured_message"]
    assert (got["recipient"], got["metadata"]) == (f"agent:{other['slug']}", {"k": "v"})
    assert said(ours.broker, one["slug"]) == ["hello"]
    assert said(ours.broker, third["slug"]) == []
    await ours.check()


@pytest.mark.parametrize("recipient", ["group[]", "group[ , ]", "group[a", "set["])
async def test_a_group_that_cannot_be_read_is_refused(ours: Scene, recipient: str) -> None:
    agent = await ours.agent()
    answer = await to_group(ours, agent, recipient)
    assert answer.expect(400).code == "validation_error"


async def test_all_are_held_while_the_broker_is_away(ours: Scene) -> None:
    agents = await many_agents(ours, 5)
    await ours.offline()
    answer = (await broadcast(ours, "when you are back")).expect(202)
    now = (await broadcast(ours, "now or never", prefer="deliver=now")).expect(202)
    assert {one["error"]["code"] for one in now.json["results"]} == {"runtime_broker_unavailable"}
    assert {row["state"] for row in await ours.api.all_dispatches(groupId=answer.json["groupId"])} == {"pending"}
    await ours.online()
    await all_done(ours, answer.json["groupId"], 5)
    for agent in agents:
        assert said(ours.broker, agent["slug"]) == ["when you are back"]
    await ours.check()


async def test_one_key_covers_all_of_a_call(ours: Scene) -> None:
    agents = await many_agents(ours, 4)
    (await ours.api.do("stop", agents[0]["id"])).expect(200)
    key = str(uuid.uuid4())
    first = (await broadcast(ours, "once", idempotency_key=key)).expect(202)
    await all_done(ours, first.json["groupId"], 3)
    await ours.agent()
    second = (await broadcast(ours, "once", idempotency_key=key)).expect(202)
    states = {True: "done", False: "none"}
    expected = [{**one, "dispatchState": states[bool(one["messageId"])]} for one in first.json["results"]]
    assert second.json == {"groupId": first.json["groupId"], "results": expected}
    assert (await broadcast(ours, "other", idempotency_key=key)).expect(409).code == "idempotency_conflict"
    assert len(ours.broker.effects(op="message")) == 3
    await ours.check()


async def test_calls_with_one_key_at_once_make_one_group(ours: Scene, tasks: TaskGroup) -> None:
    await many_agents(ours, 5)
    key, answers = str(uuid.uuid4()), []

    async def call() -> None:
        answers.append((await broadcast(ours, "once", idempotency_key=key)).expect(202))

    async with anyio.create_task_group() as calls:
        for _ in range(6):
            calls.start_soon(call)
    assert len({answer.json["groupId"] for answer in answers}) == 1
    await all_done(ours, answers[0].json["groupId"], 5)
    assert len(ours.broker.effects(op="message")) == 5


async def test_a_key_of_one_that_could_tell_nobody_is_kept_too(ours: Scene) -> None:
    key = str(uuid.uuid4())
    first = (await broadcast(ours, "anybody?", idempotency_key=key)).expect(202)
    await ours.agent()
    assert (await broadcast(ours, "anybody?", idempotency_key=key)).json == first.json


async def test_a_batch_tells_each_agent_its_own(ours: Scene) -> None:
    """A thousand messages in one call, to one agent in the order of the batch."""
    agents = await many_agents(ours, 10)
    messages = [{"agentId": agents[n % 10]["id"], "message": f"m{n}"} for n in range(1000)]
    answer = (await batch(ours, messages)).expect(202)
    assert [one["agentId"] for one in answer.json["results"]] == [message["agentId"] for message in messages]
    await all_done(ours, answer.json["groupId"], 1000)
    for n, agent in enumerate(agents):
        assert said(ours.broker, agent["slug"]) == [f"m{at}" for at in range(n, 1000, 10)]
    assert (await batch(ours, [*messages, messages[0]])).expect(400).code == "validation_error"


async def test_a_bad_message_of_a_batch_is_named_and_nothing_is_sent(ours: Scene) -> None:
    agent = await ours.agent()
    good = {"agentId": agent["id"], "message": "hello"}
    answer = (await batch(ours, [good, {"agentId": agent["id"], "message": ""}])).expect(400)
    assert "messages[1].message" in answer.text
    assert (await batch(ours, [good, {"message": "to nobody"}])).expect(400).code == "validation_error"
    assert ours.broker.events(what="request", op="message") == []


async def test_a_message_of_a_batch_may_have_a_key_of_its_own(ours: Scene) -> None:
    agent = await ours.agent()
    keys = [str(uuid.uuid4()) for _ in range(2)]
    one, two = ({"agentId": agent["id"], "message": f"m{n}", "idempotencyKey": keys[n]} for n in range(2))
    first = (await batch(ours, [one, one])).expect(202).json["results"]
    assert first[0]["messageId"] == first[1]["messageId"]
    second = (await batch(ours, [one, two, {**one, "message": "another"}])).expect(202).json["results"]
    assert second[0]["messageId"] == first[0]["messageId"]
    assert second[2]["error"]["code"] == "idempotency_conflict"
    await ours.api.ended(second[1]["messageId"])
    assert said(ours.broker, agent["slug"]) == ["m0", "m1"]
    await ours.check()
