"""Every operation through a hub that does not hold the broker: its true outcome, its typed errors, one life (T2–T4)."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from kernel.testing.postgres import Server
from tests.harness.brokerprocess import BrokerProcess
from tests.harness.checker import check
from tests.harness.cluster import Cluster
from tests.harness.fixtures import tasks
from tests.harness.hubclient import Answered, HubClient, Json
from tests.harness.hubprocess import HubProcess
from tests.harness.processes import eventually
from tests.harness.run import Run
from tests.harness.scenes import Background

__all__ = ["tasks"]
pytestmark = pytest.mark.anyio

TEAPOT = {"error": {"code": "teapot", "message": "short and stout"}}
NEEDS = {"required": ["API_KEY"], "hubHas": [], "brokerHas": [], "needs": ["API_KEY"], "secretInfo": {}}
AT_ONCE = 20.0
"""Seconds within which a failure is told on a busy machine: far below the 50 s of a wait and the 90 s of a window."""


@pytest.fixture(scope="module")
def database(postgres: Server) -> Iterator[str]:
    yield postgres.create_database("forward")
    postgres.drop_database("forward")


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory, database: str) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("forward"), database, hubs=3) as made:
        yield made


@dataclass(frozen=True)
class Far:
    """A broker whose socket one hub holds, and callers of the two others."""

    cluster: Cluster
    holder: HubProcess
    broker: BrokerProcess
    project: str

    @property
    def here(self) -> HubClient:
        """The hub that is asked; it never holds the broker."""
        return self.cluster.others(self.holder)[0].api

    @property
    def elsewhere(self) -> HubClient:
        """The third hub, which has nothing to do with a call."""
        return self.cluster.others(self.holder)[1].api

    async def agent(self, **more: Any) -> Json:
        return await self.here.create_agent(self.project, self.broker.broker_id, **more)

    async def do(self, op: str, agent: Json, **headers: str) -> Answered:
        match op:
            case "delete":
                return await self.here.delete(agent["id"], **headers)
            case "message":
                return await self.here.message(agent["id"], "hello", more=None, **{"prefer": "wait=20", **headers})
            case "has-prompt":
                named = {name.replace("_", "-").title(): value for name, value in headers.items()}
                return await self.here.ask("GET", f"/agents/{agent['id']}/has-prompt", headers=named)
            case _:
                return await self.here.do(op, agent["id"], **headers)

    async def check(self) -> None:
        """All promises, for this broker's intents."""
        rows = await self.here.all_dispatches(brokerId=self.broker.broker_id)
        for row in rows:
            if row["endedAt"] is None:
                await self.here.ended(row["id"])
        rows = await self.here.all_dispatches(brokerId=self.broker.broker_id)
        mine = {row["id"] for row in rows}
        calls = self.cluster.calls()
        asked = {event["call"] for event in calls if event["what"] == "answered" and event.get("dispatch") in mine}
        check(Run(calls=[one for one in calls if one.get("call") in asked], broker=self.broker.history(), rows=rows))


@pytest.fixture
async def far(cluster: Cluster) -> AsyncIterator[Far]:
    holder = cluster.hubs[1]
    identity = await holder.api.register_broker()
    name = f"broker-{identity['broker_id']}"
    async with cluster.broker(identity, first=holder, name=name) as broker:
        assert await cluster.owner(identity["broker_id"]) is holder
        yield Far(cluster, holder, broker, await holder.api.create_project())


# -- outcomes ----------------------------------------------------------------------------------------------------

PHASES = {"start": "running", "restart": "running", "stop": "stopped", "suspend": "suspended"}


@pytest.mark.parametrize("op", sorted(PHASES))
async def test_the_agents_phase_is_in_the_row_when_the_answer_is_there(far: Far, op: str) -> None:
    agent = await far.agent()
    if op == "start":
        (await far.do("stop", agent)).expect(200)
    answer = (await far.do(op, agent)).expect(200)
    assert answer.json["phase"] == PHASES[op]
    seen = await far.elsewhere.agent(agent["id"])
    assert (seen["phase"], seen["stateVersion"]) == (PHASES[op], answer.json["stateVersion"])
    row = await far.elsewhere.dispatch(answer.dispatch)
    assert (row["state"], row["route"], row["attempts"]) == ("done", "forward", 1)
    assert (row["nodeId"], row["claimedBy"]) == (far.cluster.others(far.holder)[0].node, far.holder.node)
    assert len(far.broker.effects(op=op)) == 1
    await far.check()


async def test_what_a_stock_broker_cannot_take_is_refused_on_every_hub_alike(cluster: Cluster) -> None:
    """The caller of another hub is told so too, instead of a 202 for what can never be sent."""
    holder = cluster.hubs[1]
    identity = await holder.api.register_broker()
    async with cluster.broker(identity, first=holder, name=f"stock-{identity['broker_id']}", personality="stock"):
        assert await cluster.owner(identity["broker_id"]) is holder
        agent = await holder.api.create_agent(await holder.api.create_project(), identity["broker_id"])
        for hub in (holder, *cluster.others(holder)):
            answer = await hub.api.message(agent["id"], "x" * 60_000)
            assert answer.expect(413).code == "payload_too_large", hub.node
    assert await holder.api.all_dispatches(brokerId=identity["broker_id"], op="message") == []


async def test_a_creation_is_forwarded_and_starts_the_agent(far: Far) -> None:
    answer = await far.here.post_agent(far.project, far.broker.broker_id)
    agent = answer.expect(201).json["agent"]
    assert agent["phase"] == "running"
    assert (await far.elsewhere.agent(agent["id"]))["phase"] == "running"
    assert (await far.elsewhere.dispatch(answer.dispatch))["claimedBy"] == far.holder.node
    assert len(far.broker.effects(op="create")) == 1


async def test_a_creation_that_asks_for_values_gets_them_from_the_wrong_hub(far: Far) -> None:
    await far.broker.rule(op="create", times=1, status=202, body=NEEDS, effect="none")
    made = (await far.here.post_agent(far.project, far.broker.broker_id, gatherEnv=True)).expect(202)
    agent = made.json["agent"]
    assert (agent["phase"], made.json["envGather"]["needs"]) == ("provisioning", ["API_KEY"])
    given = await far.elsewhere.do("env", agent["id"], {"env": {"API_KEY": "hush"}})
    assert given.expect(200).json["agent"]["phase"] == "running"
    assert far.broker.events(what="request", op="finalize_env")[0]["json"]["env"] == {"API_KEY": "hush"}
    assert "hush" not in (await far.here.ask("GET", f"/dispatches/{given.dispatch}")).text
    await far.check()


async def test_a_deletion_is_forwarded(far: Far) -> None:
    agent = await far.agent()
    answer = (await far.do("delete", agent)).expect(204)
    assert (await far.elsewhere.dispatch(answer.dispatch))["state"] == "done"
    assert (await far.elsewhere.agent(agent["id"]))["deletedAt"]
    assert (await far.elsewhere.do("start", agent["id"])).expect(409).code == "invalid_state"


async def test_what_the_broker_does_not_know_is_deleted_all_the_same(far: Far) -> None:
    agent = await far.agent()
    await far.broker.rule(op="delete", status=404, body=TEAPOT, effect="none")
    (await far.do("delete", agent)).expect(204)


async def test_the_prompt_is_asked_for_through_any_hub(far: Far) -> None:
    agent = await far.agent()
    await far.broker.rule(op="has_prompt", status=200, body={"hasPrompt": False})
    assert (await far.do("has-prompt", agent)).expect(200).json == {"hasPrompt": False}


async def test_the_whole_answer_of_the_broker_is_the_result(far: Far) -> None:
    """More than any signal carries."""
    agent = await far.agent()
    said = {"phase": "stopped", "log": "x" * 20_000, "nested": {"list": [1, None, "ü"]}}
    await far.broker.rule(op="stop", status=200, body=said)
    answer = (await far.do("stop", agent)).expect(200)
    assert (await far.elsewhere.dispatch(answer.dispatch))["result"] == said


async def test_a_message_is_forwarded_with_its_whole_envelope(far: Far) -> None:
    agent = await far.agent()
    body = {"structured_message": {"msg": "read this", "metadata": {"k": "v"}}, "interrupt": True}
    sent = await far.here.ask("POST", f"/agents/{agent['id']}/message", body, headers={"Prefer": "wait=20"})
    assert sent.expect(200).json["dispatchState"] == "done"
    got = far.broker.events(what="request", op="message")[0]["json"]
    assert (got["structured_message"]["msg"], got["structured_message"]["metadata"]) == ("read this", {"k": "v"})
    assert got["interrupt"] is True


async def test_messages_through_two_wrong_hubs_keep_their_order(far: Far) -> None:
    agent = await far.agent()
    sent = [await (far.here, far.elsewhere)[n % 2].message(agent["id"], f"m{n}") for n in range(20)]
    for answer in sent:
        assert (await far.here.ended(answer.expect(202).dispatch))["state"] == "done"
    assert [event["dispatch"] for event in far.broker.effects(op="message")] == [one.dispatch for one in sent]
    await far.check()


# -- who does not wait -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["create", "delete", "has-prompt", "message", "restart", "stop", "suspend"])
async def test_its_location_is_followed_on_any_hub(far: Far, op: str) -> None:
    if op == "create":
        asked = {"Prefer": "respond-async"}
        answer = await far.here.post_agent(far.project, far.broker.broker_id, headers=asked)
    else:
        answer = await far.do(op, await far.agent(), prefer="respond-async")
    location = answer.expect(202).headers["location"].removeprefix("/api/v1")
    assert location == f"/dispatches/{answer.dispatch}"
    for client in (far.elsewhere, far.holder.api, far.here):
        assert (await client.ended(answer.dispatch))["state"] == "done"
        (await client.ask("GET", location)).expect(200)
    await far.check()


async def test_a_wait_that_is_over_leaves_it_to_be_followed(far: Far) -> None:
    agent = await far.agent()
    await far.broker.rule(op="stop", gate="slow")
    answer = (await far.do("stop", agent, prefer="wait=1")).expect(202)
    assert (await far.elsewhere.dispatch(answer.dispatch))["state"] == "in_progress"
    assert (await far.elsewhere.explain(answer.dispatch))["code"] in ("waiting_owner", "sent", "accepted")
    await far.broker.release("slow")
    assert (await far.elsewhere.ended(answer.dispatch))["state"] == "done"


# -- typed errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["delete", "has-prompt", "message", "restart", "start", "stop", "suspend"])
async def test_a_failure_is_told_at_once_with_the_brokers_words(far: Far, op: str) -> None:
    agent = await far.agent()
    wire_op = {"has-prompt": "has_prompt"}.get(op, op)
    await far.broker.rule(op=wire_op, status=422, body=TEAPOT)
    answer = (await far.do(op, agent)).expect(502)
    assert answer.code == "runtime_error"
    assert "short and stout" in answer.text
    assert answer.took < AT_ONCE
    row = await far.elsewhere.dispatch(answer.dispatch)
    assert (row["state"], row["attempts"], row["error"]["code"]) == ("failed", 1, "runtime_error")
    assert "the broker answered 422" in (await far.elsewhere.explain(answer.dispatch))["sentence"]
    await far.check()


async def test_a_creation_that_the_broker_refuses_leaves_no_agent(far: Far) -> None:
    await far.broker.rule(op="create", status=422, body=TEAPOT)
    answer = (await far.here.post_agent(far.project, far.broker.broker_id, "refused")).expect(502)
    assert "short and stout" in answer.text
    assert answer.took < AT_ONCE
    assert (await far.elsewhere.get("/agents", projectId=far.project))["agents"] == []


async def test_what_waits_past_its_deadline_did_not_happen(far: Far) -> None:
    agent = await far.agent()
    await far.broker.rule(op="restart", gate="slow")
    first = await far.do("restart", agent, prefer="respond-async")
    await far.broker.seen(what="effect", op="restart")
    answer = (await far.do("suspend", agent, x_dispatch_deadline="1")).expect(504)
    assert answer.code == "broker_timeout"
    await far.broker.release("slow")
    assert (await far.elsewhere.ended(first.dispatch))["state"] == "done"
    assert (await far.elsewhere.ended(answer.dispatch))["state"] == "expired"
    assert far.broker.events(what="request", op="suspend") == []
    await far.check()


async def test_what_was_sent_and_not_answered_is_not_known(far: Far) -> None:
    agent = await far.agent()
    await far.broker.rule(op="stop", gate="slow")
    answer = (await far.do("stop", agent, x_dispatch_deadline="1")).expect(504)
    assert answer.code == "outcome_unknown"
    await far.broker.release("slow")
    row = await far.elsewhere.ended(answer.dispatch)
    assert row["state"] in ("done", "expired")


async def test_a_broker_that_nobody_holds_is_told_as_such_by_every_hub(far: Far) -> None:
    agent = await far.agent()
    await far.broker.disconnect()
    await far.here.broker_is(far.broker.broker_id, "offline")
    for client in (far.here, far.elsewhere, far.holder.api):
        answer = (await client.do("start", agent["id"])).expect(503)
        assert answer.code == "runtime_broker_unavailable"
        assert int(answer.headers["retry-after"]) > 0
    held = (await far.here.message(agent["id"], "later")).expect(202)
    await far.broker.connect(far.cluster.others(far.holder)[1].url)
    assert (await far.here.ended(held.dispatch))["state"] == "done"


async def test_a_pause_that_one_hub_was_told_counts_on_all(far: Far) -> None:
    agent = await far.agent()
    path = f"/runtime-brokers/{far.broker.broker_id}"
    (await far.elsewhere.ask("POST", f"{path}/pause")).expect(200)
    assert (await far.do("stop", agent)).expect(503).code == "runtime_broker_paused"
    held = (await far.here.message(agent["id"], "later")).expect(202)
    assert (await far.here.explain(held.dispatch))["code"] == "paused"
    (await far.elsewhere.ask("POST", f"{path}/resume")).expect(200)
    assert (await far.here.ended(held.dispatch))["state"] == "done"


async def test_logs_name_the_hub_that_has_them(far: Far) -> None:
    agent = await far.agent()
    answer = (await far.here.ask("GET", f"/agents/{agent['id']}/logs")).expect(503)
    assert (answer.code, answer.json["error"]["details"]["nodeId"]) == ("wrong_node", far.holder.node)


# -- cancelled, explained ----------------------------------------------------------------------------------------


async def test_a_cancel_on_a_third_hub_stops_what_the_holder_sent(far: Far, tasks: TaskGroup) -> None:
    agent = await far.agent()
    await far.broker.rule(op="restart", gate="slow", effect="after")
    call = Background()
    tasks.start_soon(call.run, lambda: far.do("restart", agent))
    asked = await far.broker.seen(what="request", op="restart")
    outcome = (await far.elsewhere.cancel(asked["dispatch"])).expect(200).json["outcome"]
    assert outcome == "cancel_requested"
    assert (await call.answered()).expect(409).code == "cancelled"
    assert far.broker.effects(op="restart") == []
    await far.check()


async def test_a_cancel_of_what_nobody_took_answers_its_caller_on_another_hub(far: Far, tasks: TaskGroup) -> None:
    agent = await far.agent()
    await far.broker.disconnect()
    await far.here.broker_is(far.broker.broker_id, "offline")
    call = Background()
    tasks.start_soon(call.run, lambda: far.do("stop", agent, prefer="deliver=hold, wait=60"))

    async def recorded() -> str | None:
        rows = await far.elsewhere.all_dispatches(agentId=agent["id"], state="pending")
        return rows[0]["id"] if rows else None

    dispatch = await eventually(recorded, "the stop recorded")
    assert (await far.elsewhere.cancel(dispatch)).expect(200).json["outcome"] == "cancelled"
    answer = (await call.answered()).expect(409)
    assert (answer.code, answer.dispatch) == ("cancelled", dispatch)
    assert "by user:" in (await far.here.explain(dispatch))["sentence"]


async def test_the_course_of_a_forwarded_call_names_both_hubs(far: Far) -> None:
    agent = await far.agent()
    answer = (await far.do("stop", agent)).expect(200)
    steps = (await far.elsewhere.explain(answer.dispatch))["transitions"]
    entry = far.cluster.others(far.holder)[0].node
    assert [(step["from"], step["to"], step["nodeId"]) for step in steps] == [
        ("accepted", "routed", entry),
        ("routed", "pending", entry),
        ("pending", "in_progress", far.holder.node),
        ("in_progress", "done", far.holder.node),
    ]
    assert steps[0]["detail"]["to"] == far.holder.node


# -- one key over two hubs ---------------------------------------------------------------------------------------


async def test_one_key_on_two_hubs_at_once_is_one_intent(far: Far, tasks: TaskGroup) -> None:
    agent = await far.agent()
    await far.broker.rule(op="stop", gate="slow")
    key = str(uuid.uuid4())
    clients = (far.here, far.elsewhere, far.holder.api) * 3
    calls = [Background() for _ in clients]
    for call, client in zip(calls, clients, strict=True):
        tasks.start_soon(call.run, lambda client=client: client.do("stop", agent["id"], idempotency_key=key))
    await far.broker.seen(what="effect", op="stop")
    await far.broker.release("slow")
    answers = [(await call.answered()).expect(200) for call in calls]
    assert len({answer.dispatch for answer in answers}) == 1
    assert len(far.broker.effects(op="stop")) == 1
    other = await far.elsewhere.do("start", agent["id"], idempotency_key=key)
    assert other.expect(409).code == "idempotency_conflict"
    await far.check()


async def test_one_key_on_two_hubs_makes_one_agent(far: Far) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    answers: list[Answered] = []

    async def create(client: HubClient) -> None:
        answers.append(await client.post_agent(far.project, far.broker.broker_id, "once", headers))

    async with anyio.create_task_group() as calls:
        for client in (far.here, far.elsewhere, far.holder.api):
            calls.start_soon(create, client)
    assert len({answer.expect(201).json["agent"]["id"] for answer in answers}) == 1
    assert len(far.broker.effects(op="create")) == 1


async def test_a_failure_is_repeated_on_another_hub_too(far: Far) -> None:
    agent = await far.agent()
    await far.broker.rule(op="stop", times=1, status=500, body=TEAPOT)
    key = str(uuid.uuid4())
    first = (await far.here.do("stop", agent["id"], idempotency_key=key)).expect(502)
    second = (await far.elsewhere.do("stop", agent["id"], idempotency_key=key)).expect(502)
    assert second.dispatch == first.dispatch
    assert len(far.broker.events(what="request", op="stop")) == 1


# -- messages to many (T13) --------------------------------------------------------------------------------------


async def test_sixty_agents_of_brokers_on_two_hubs_are_told_once_each_and_in_order(far: Far, tmp_path: Path) -> None:
    identity = await far.here.register_broker()
    near = far.cluster.others(far.holder)[0]
    async with far.cluster.broker(identity, first=near, name=f"near-{identity['broker_id']}") as other:
        assert await far.cluster.owner(identity["broker_id"]) is near
        owners = [far.broker] * 30 + [other] * 30
        agents = [await far.here.create_agent(far.project, owner.broker_id) for owner in owners]
        key = {"Idempotency-Key": str(uuid.uuid4())}
        path, groups = f"/projects/{far.project}/broadcast", []
        for n, client in enumerate((far.here, far.elsewhere, far.holder.api)):
            answer = (
                await client.ask("POST", path, {"message": f"notice {n}"}, headers=key if not n else None)
            ).expect(202)
            assert len(answer.json["results"]) == 60
            groups.append(answer.json["groupId"])
        repeat = (await far.elsewhere.ask("POST", path, {"message": "notice 0"}, headers=key)).expect(202)
        assert repeat.json["groupId"] == groups[0]

        async def ended() -> bool:
            rows = [row for group in groups for row in await far.elsewhere.all_dispatches(groupId=group)]
            return len(rows) == 180 and all(row["state"] == "done" for row in rows)

        await eventually(ended, "180 messages done", patience=120)
        for agent, owner in zip(agents, owners, strict=True):
            sent = {event["dispatch"]: event["json"]["message"] for event in owner.events(what="request", op="message")}
            told = [sent[event["dispatch"]] for event in owner.effects(op="message", agent=agent["slug"])]
            assert told == ["notice 0", "notice 1", "notice 2"]
        for state in ("pending", "in_progress"):
            assert await far.here.all_dispatches(projectId=far.project, state=state) == []
    await far.check()


async def test_a_thousand_messages_in_one_call_are_told_in_order(far: Far) -> None:
    agents = [await far.agent() for _ in range(10)]
    messages = [{"agentId": agents[n % 10]["id"], "message": f"m{n}"} for n in range(1000)]
    answer = (await far.here.ask("POST", "/messages/batch", {"messages": messages})).expect(202)

    async def ended() -> bool:
        return len(await far.elsewhere.all_dispatches(groupId=answer.json["groupId"], state="done")) == 1000

    await eventually(ended, "a thousand messages done", patience=180)
    sent = {event["dispatch"]: event["json"]["message"] for event in far.broker.events(what="request", op="message")}
    for n, agent in enumerate(agents):
        told = [sent[event["dispatch"]] for event in far.broker.effects(op="message", agent=agent["slug"])]
        assert told == [f"m{at}" for at in range(n, 1000, 10)]
