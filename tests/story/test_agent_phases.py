"""An agent's phase follows its intents' ends and the reports of its current run, and nothing else."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import anyio
import pytest

if TYPE_CHECKING:
    from tests.harness.hubclient import Answered, Json
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


def token_of(ours: Scene, agent: Json) -> str:
    """The agent's own token, as its broker was handed it with the last start."""
    sent = ours.broker.events(what="request", agent=agent["slug"], op=lambda op: op in ("create", "start", "restart"))
    return str(sent[-1]["json"]["agentToken"])


async def report(ours: Scene, agent: Json, token: str | None = None, **said: Any) -> Answered:
    headers = {"Authorization": f"Bearer {token or token_of(ours, agent)}"}
    said.setdefault("runId", agent["runId"])
    return await ours.api.ask("POST", f"/agents/{agent['id']}/status", said, headers=headers)


async def event(ours: Scene, agent: Json, **said: Any) -> None:
    payload = {"agentId": agent["id"], "slug": agent["slug"], "projectId": ours.project, **said}
    await ours.broker.tell("send", frame={"type": "event", "event": "agent_status", "payload": payload})


async def test_an_agent_reports_its_own_activity(ours: Scene) -> None:
    agent = await ours.agent()
    detail = {"message": "reading", "toolName": "grep"}
    (await report(ours, agent, activity="executing", detail=detail)).expect(204)
    found = await ours.api.agent(agent["id"])
    assert (found["phase"], found["activity"]) == ("running", "executing")
    assert found["detail"]["toolName"] == "grep"


async def test_the_token_may_come_in_its_own_header(ours: Scene) -> None:
    agent = await ours.agent()
    headers = {"Authorization": "", "X-Scion-Agent-Token": token_of(ours, agent)}
    said = {"runId": agent["runId"], "activity": "thinking"}
    (await ours.api.ask("POST", f"/agents/{agent['id']}/status", said, headers=headers)).expect(204)
    assert (await ours.api.agent(agent["id"]))["activity"] == "thinking"


async def test_a_report_of_the_current_run_ends_it(ours: Scene) -> None:
    agent = await ours.agent()
    (await report(ours, agent, phase="error", detail={"exitCode": 3})).expect(204)
    found = await ours.api.agent(agent["id"])
    assert (found["phase"], found["detail"]["exitCode"]) == ("error", 3)


async def test_a_report_of_an_ended_run_changes_nothing(ours: Scene) -> None:
    agent = await ours.agent()
    again = (await ours.api.do("restart", agent["id"])).expect(200).json
    (await report(ours, agent, phase="stopped", activity="crashed")).expect(204)
    await event(ours, agent, runId=agent["runId"], phase="error")
    await anyio.sleep(0.5)
    found = await ours.api.agent(agent["id"])
    assert (found["phase"], found["runId"]) == ("running", again["runId"])
    assert found["activity"] != "crashed"


async def test_a_report_never_revives_a_stopped_agent(ours: Scene) -> None:
    agent = await ours.agent()
    stopped = (await ours.api.do("stop", agent["id"])).expect(200).json
    (await report(ours, agent, phase="running", runId=stopped["runId"])).expect(204)
    assert (await ours.api.agent(agent["id"]))["phase"] == "stopped"


async def test_a_suspended_agent_stays_so_whatever_its_ended_process_says(ours: Scene) -> None:
    agent = await ours.agent()
    (await ours.api.do("suspend", agent["id"])).expect(200)
    (await report(ours, agent, phase="stopped")).expect(204)
    await event(ours, agent, runId=agent["runId"], phase="error")
    await anyio.sleep(0.5)
    assert (await ours.api.agent(agent["id"]))["phase"] == "suspended"


async def test_a_late_hook_does_not_take_running_back_to_starting(ours: Scene) -> None:
    agent = await ours.agent()
    (await report(ours, agent, phase="starting")).expect(204)
    assert (await ours.api.agent(agent["id"]))["phase"] == "running"


async def test_a_brokers_event_about_the_current_run_counts(ours: Scene) -> None:
    agent = await ours.agent()
    await event(ours, agent, runId=agent["runId"], phase="stopped", detail={"exitCode": 0})
    found = await ours.api.agent_is(agent["id"], "stopped")
    assert found["detail"]["exitCode"] == 0


async def test_a_brokers_event_without_a_run_is_not_believed_of_a_broker_that_names_runs(ours: Scene) -> None:
    agent = await ours.agent()
    await event(ours, agent, phase="stopped")
    await anyio.sleep(0.5)
    assert (await ours.api.agent(agent["id"]))["phase"] == "running"


async def test_a_broker_cannot_report_about_anothers_agent(ours: Scene) -> None:
    agent = await ours.agent()
    async with await ours.other_broker("thief") as thief:
        await thief.seen(what="connected")
        payload = {"agentId": agent["id"], "slug": agent["slug"], "runId": agent["runId"], "phase": "error"}
        await thief.tell("send", frame={"type": "event", "event": "agent_status", "payload": payload})
        await anyio.sleep(0.5)
    assert (await ours.api.agent(agent["id"]))["phase"] == "running"


async def test_an_agent_reports_only_about_itself(ours: Scene) -> None:
    agent, other = await ours.agent(), await ours.agent()
    answer = await report(ours, other, token_of(ours, agent), phase="error")
    assert answer.status == 403
    assert (await ours.api.agent(other["id"]))["phase"] == "running"


async def test_a_report_may_overtake_the_answer_of_its_start(ours: Scene) -> None:
    """The agent ends at once: the report of the new run is there before the start's answer."""
    agent = await ours.agent()
    (await ours.api.do("stop", agent["id"])).expect(200)
    await ours.broker.rule(op="start", gate="slow")
    answer = await ours.api.do("start", agent["id"], prefer="respond-async")
    run = (await ours.broker.seen(what="effect", op="start"))["run"]
    await event(ours, agent, runId=run, phase="stopped", detail={"exitCode": 7})
    await ours.broker.release("slow")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    found = await ours.api.agent(agent["id"])
    assert found["runId"] == run


async def test_activities_end_with_the_run_except_those_that_last(ours: Scene) -> None:
    agent = await ours.agent()
    (await report(ours, agent, activity="waiting_for_input")).expect(204)
    (await report(ours, agent, phase="stopped")).expect(204)
    assert (await ours.api.agent(agent["id"]))["activity"] is None
    again = (await ours.api.do("start", agent["id"])).expect(200).json
    (await report(ours, again, phase="stopped", activity="limits_exceeded")).expect(204)
    assert (await ours.api.agent(agent["id"]))["activity"] == "limits_exceeded"


@pytest.mark.parametrize("said", [{"phase": "flying"}, {"runId": 7}, {"detail": "text"}])
async def test_a_report_with_bad_fields_is_refused(ours: Scene, said: dict[str, Any]) -> None:
    agent = await ours.agent()
    answer = await report(ours, agent, **said)
    assert answer.expect(400).code == "validation_error"


async def test_a_report_about_an_unknown_agent_is_404_or_403(ours: Scene) -> None:
    agent = await ours.agent()
    answer = await report(ours, {**agent, "id": str(uuid.uuid4())}, token_of(ours, agent))
    assert answer.status in (403, 404)
