"""One hub, one broker: each operation on the local path, and what its answer promises (P7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


async def test_create_makes_and_starts_an_agent_with_one_frame(ours: Scene) -> None:
    answer = (await ours.api.post_agent(ours.project, ours.broker_id, "Ada")).expect(201)
    agent = answer.json["agent"]
    assert (agent["phase"], agent["runtimeBrokerId"]) == ("running", ours.broker_id)
    assert [event["op"] for event in ours.broker.events(what="request")] == ["create"]
    row = await ours.api.dispatch(answer.dispatch)
    assert (row["op"], row["state"], row["agentId"]) == ("create", "done", agent["id"])
    await ours.check()


async def test_create_hands_the_config_over_unchanged(ours: Scene) -> None:
    config = {"command": ["sleep", "5"], "env": {"Ä": "ü"}, "nested": {"list": [1, None, 2.5]}}
    agent = await ours.agent(config=config)
    sent = ours.broker.events(what="request")[0]["json"]
    assert sent["inlineConfig"] == config
    assert (sent["id"], sent["slug"], sent["projectId"]) == (agent["id"], agent["slug"], ours.project)
    assert sent["groveId"] == ours.project
    assert sent["agentToken"]


@pytest.mark.parametrize(
    ("op", "phase"), [("stop", "stopped"), ("start", "running"), ("restart", "running"), ("suspend", "suspended")]
)
async def test_an_operation_answers_with_the_agent_as_stored_after_it(ours: Scene, op: str, phase: str) -> None:
    agent = await ours.agent()
    answer = (await ours.api.do(op, agent["id"])).expect(200)
    assert answer.json["phase"] == phase
    assert (await ours.api.agent(agent["id"]))["phase"] == phase
    await ours.check()


@pytest.mark.parametrize("op", ["stop", "start", "restart", "suspend", "has-prompt", "message"])
async def test_the_ended_intent_is_there_as_soon_as_the_answer_is(ours: Scene, op: str) -> None:
    agent = await ours.agent()
    match op:
        case "has-prompt":
            answer = await ours.api.ask("GET", f"/agents/{agent['id']}/has-prompt")
        case "message":
            answer = await ours.api.message(agent["id"], "hello", prefer="wait=10")
        case _:
            answer = await ours.api.do(op, agent["id"])
    row = await ours.api.dispatch(answer.expect(200).dispatch)
    assert row["state"] == "done"
    assert row["result"]["echo"] == row["id"]
    assert row["endedAt"]


async def test_a_local_call_is_sent_as_first_attempt_under_the_sessions_epoch(ours: Scene) -> None:
    agent = await ours.agent()
    answer = await ours.api.do("stop", agent["id"])
    sent = await ours.broker.seen(what="request", op="stop")
    epoch = ours.broker.events(what="connected")[0]["epoch"]
    assert (sent["dispatch"], sent["attempt"], sent["epoch"]) == (answer.dispatch, 1, epoch)
    assert sent["headers"]["X-Agent-Id"] == agent["id"]
    assert 0 < sent["timeoutMs"] <= 60_000
    row = await ours.api.dispatch(answer.dispatch)
    assert (row["attempts"], row["claimedEpoch"]) == (1, epoch)


async def test_each_start_makes_a_run_that_later_commands_name(ours: Scene) -> None:
    agent = await ours.agent()
    ops = ("stop", "start", "restart")
    runs = [agent["runId"], *[(await ours.api.do(op, agent["id"])).expect(200).json["runId"] for op in ops]]
    sent = {event["op"]: event["json"]["runId"] for event in ours.broker.events(what="request")}
    assert len(set(runs) - {None}) == 3
    assert sent == {"create": runs[0], "stop": runs[0], "start": runs[2], "restart": runs[3]}


async def test_has_prompt_is_asked_of_the_broker(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await ours.api.ask("GET", f"/agents/{agent['id']}/has-prompt")).expect(200)
    assert answer.json == {"hasPrompt": True}
    assert ours.broker.events(what="request")[-1]["method"] == "GET"


async def test_delete_answers_204_and_frees_the_slug(ours: Scene) -> None:
    agent = await ours.agent("twice")
    answer = (await ours.api.delete(agent["id"])).expect(204)
    assert answer.text == ""
    assert (await ours.api.dispatch(answer.dispatch))["state"] == "done"
    again = await ours.agent("twice")
    assert (again["slug"], again["id"] != agent["id"]) == (agent["slug"], True)
    await ours.check()


async def test_delete_of_an_agent_that_the_broker_does_not_know_is_done(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="delete", status=404, body={"error": {"code": "not_found", "message": "gone"}})
    answer = (await ours.api.delete(agent["id"])).expect(204)
    assert (await ours.api.dispatch(answer.dispatch))["state"] == "done"


async def test_nothing_can_be_done_to_a_deleted_agent(ours: Scene) -> None:
    agent = await ours.agent()
    (await ours.api.delete(agent["id"])).expect(204)
    for answer in (await ours.api.do("start", agent["id"]), await ours.api.message(agent["id"], "hello")):
        assert (answer.expect(409).code) == "invalid_state"


async def test_start_on_running_and_stop_on_stopped_are_sent(ours: Scene) -> None:
    agent = await ours.agent()
    (await ours.api.do("start", agent["id"])).expect(200)
    (await ours.api.do("stop", agent["id"])).expect(200)
    (await ours.api.do("stop", agent["id"])).expect(200)
    assert [e["op"] for e in ours.broker.effects()] == ["create", "start", "stop", "stop"]


async def test_the_brokers_phase_may_stand_at_the_top_of_its_reply(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="start", status=200, body={"phase": "starting"})
    assert (await ours.api.do("start", agent["id"])).expect(200).json["phase"] == "starting"
    await ours.broker.rule(op="restart", status=200, body={"status": "running"})
    assert (await ours.api.do("restart", agent["id"])).expect(200).json["phase"] == "running"


async def test_a_word_that_is_no_phase_means_the_operations_own(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", status=202, body={"status": "accepted"})
    assert (await ours.api.do("stop", agent["id"])).expect(200).json["phase"] == "stopped"


async def test_a_provisioned_agent_is_created_and_starts_later(ours: Scene) -> None:
    agent = await ours.quiet_agent()
    assert agent["phase"] == "created"
    assert (await ours.api.do("start", agent["id"])).expect(200).json["phase"] == "running"
