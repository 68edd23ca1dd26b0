"""Dispatches and messages over HTTP: listed, shown, explained, cancelled, asked for once more."""

from __future__ import annotations

import re
import uuid
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.harness.processes import eventually

if TYPE_CHECKING:
    from tests.harness.hubclient import Json
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


async def test_a_dispatch_is_shown_with_everything_known_of_it(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await ours.api.do("stop", agent["id"])).expect(200)
    row = await ours.api.dispatch(answer.dispatch)
    assert {
        "id", "op", "lane", "state", "agentId", "agentSlug", "brokerId", "projectId", "seq", "attempts", "failures",
        "route", "claimedBy", "claimedEpoch", "created", "claimedAt", "sentAt", "acceptedAt", "endedAt", "deadlineAt",
        "nextAttemptAt", "principal", "requestId", "nodeId", "traceparent", "result", "error",
    } <= set(row)  # fmt: skip
    assert (row["op"], row["lane"], row["state"], row["route"]) == ("stop", "control", "done", "local")
    assert (row["agentId"], row["brokerId"], row["projectId"]) == (agent["id"], ours.broker_id, ours.project)
    assert row["requestId"] == answer.headers["x-request-id"]
    for name in ("created", "endedAt", "deadlineAt"):
        assert TIME.fullmatch(row[name])
    assert row["error"] is None


async def test_the_trace_of_the_caller_is_kept_and_sent_on(ours: Scene) -> None:
    agent = await ours.agent()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = await ours.api.do("stop", agent["id"], traceparent=trace)
    assert (await ours.api.dispatch(answer.dispatch))["traceparent"] == trace
    assert ours.broker.events(what="request", op="stop")[0]["headers"]["traceparent"] == trace


async def test_a_call_without_a_trace_begins_one(ours: Scene) -> None:
    agent = await ours.agent()
    answer = await ours.api.do("stop", agent["id"])
    (sent,) = ours.broker.events(what="request", op="stop")
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", sent["headers"]["traceparent"])
    assert (await ours.api.dispatch(answer.dispatch))["traceparent"] == sent["headers"]["traceparent"]


async def test_lists_are_filtered_walked_and_counted_when_asked(ours: Scene) -> None:
    agent, other = await ours.agent(), await ours.agent()
    for op in ("stop", "start", "stop"):
        (await ours.api.do(op, agent["id"])).expect(200)
    await ours.api.message(other["id"], "hello", prefer="wait=20")

    async def listed(**query: str) -> list[Json]:
        answer = await ours.api.get("/dispatches", brokerId=ours.broker_id, count="true", limit="200", **query)
        assert answer["totalCount"] == len(answer["dispatches"])
        rows: list[Json] = answer["dispatches"]
        return rows

    assert len(await listed()) == 6
    assert [row["op"] for row in await listed(agentId=agent["id"])] == ["stop", "start", "stop", "create"]
    assert [row["agentId"] for row in await listed(op="message")] == [other["id"]]
    assert await listed(state="pending") == []
    assert await listed(projectId=str(uuid.uuid4())) == []
    page = await ours.api.get("/dispatches", brokerId=ours.broker_id, limit="4")
    assert "totalCount" not in page
    rest = await ours.api.get("/dispatches", brokerId=ours.broker_id, limit="4", cursor=page["nextCursor"])
    assert (len(rest["dispatches"]), rest["nextCursor"]) == (2, None)
    assert len({row["id"] for row in page["dispatches"] + rest["dispatches"]}) == 6


async def test_an_end_is_explained_with_every_step_on_the_way(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await ours.api.do("stop", agent["id"])).expect(200)
    told = await ours.api.explain(answer.dispatch)
    assert set(told) == {
        "id", "state", "code", "sentence", "nextAttemptAt", "deadlineAt", "behind", "owner", "broker", "transitions",
    }  # fmt: skip
    assert (told["code"], told["state"], told["behind"], told["nextAttemptAt"]) == ("ended", "done", None, None)
    assert told["sentence"].startswith("Done at 20")
    assert told["broker"]["status"] == "online"
    assert told["owner"]["alive"] is True
    steps = told["transitions"]
    assert (steps[0]["from"], steps[-1]["to"]) == ("accepted", "done")
    assert all(later["from"] == earlier["to"] for earlier, later in pairwise(steps))
    assert all(set(step) == {"at", "from", "to", "reason", "nodeId", "epoch", "attempt", "detail"} for step in steps)


async def test_what_waits_in_a_lane_is_told_what_it_waits_for(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    first = (await ours.api.do("stop", agent["id"], prefer="respond-async")).expect(202)
    await ours.broker.seen(what="effect", op="stop")
    second = (await ours.api.do("start", agent["id"], prefer="respond-async")).expect(202)
    told = await ours.api.explain(second.dispatch)
    assert told["code"] == "waiting_lane"
    assert told["behind"] == {"id": first.dispatch, "op": "stop"}
    assert first.dispatch in told["sentence"]
    await ours.broker.release("slow")
    await ours.api.ended(second.dispatch)


async def test_what_waits_for_its_broker_can_be_cancelled(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    held = (await ours.api.do("stop", agent["id"], prefer="deliver=hold")).expect(202)
    assert held.headers["location"] == f"/api/v1/dispatches/{held.dispatch}"
    told = await ours.api.explain(held.dispatch)
    assert (told["code"], told["owner"], told["broker"]["status"]) == ("waiting_broker", None, "offline")
    cancelled = (await ours.api.cancel(held.dispatch)).expect(200).json
    assert (cancelled["outcome"], cancelled["dispatch"]["state"]) == ("cancelled", "cancelled")
    again = (await ours.api.cancel(held.dispatch)).expect(200).json
    assert again["outcome"] == "already_ended"


async def test_a_failed_dispatch_can_be_asked_for_once_more(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", times=1, status=500, body={"error": {"code": "x", "message": "broken"}})
    failed = (await ours.api.do("stop", agent["id"])).expect(502)
    assert failed.code == "runtime_error"
    assert "broken" in failed.json["error"]["message"]
    answer = (await ours.api.ask("POST", f"/dispatches/{failed.dispatch}/requeue")).expect(202)
    assert answer.json["requeuedFrom"] == failed.dispatch
    assert answer.headers["location"] == f"/api/v1/dispatches/{answer.json['id']}"
    assert (await ours.api.ended(answer.json["id"]))["state"] == "done"
    assert (await ours.api.dispatch(failed.dispatch))["state"] == "failed"


async def test_a_preference_that_cannot_be_followed_is_refused_before_anything_is_done(ours: Scene) -> None:
    agent = await ours.agent()
    for headers in ({"prefer": "wait=9999"}, {"x_dispatch_deadline": "yesterday"}, {"idempotency_key": "x" * 300}):
        answer = await ours.api.do("stop", agent["id"], **headers)
        assert answer.expect(400).code == "validation_error"
    assert ours.broker.events(what="request", op="stop") == []


async def test_nobodys_inbox_is_empty_and_its_messages_unknown(ours: Scene) -> None:
    assert await ours.api.get("/messages", unread="true", project=ours.project) == {"messages": [], "nextCursor": None}
    assert (await ours.api.get("/messages", count="true"))["totalCount"] == 0
    for id in (str(uuid.uuid4()), "not-an-id"):
        assert (await ours.api.ask("POST", f"/messages/{id}/read")).expect(404).code == "not_found"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"message": "a", "structured_message": {"msg": "b"}}, "message"),
        ({"message": 7}, "message"),
        ({"structured_message": {"msg": 7}}, "structured_message.msg"),
        ({"structured_message": {"msg": "a", "type": 7}}, "structured_message.type"),
        ({"structured_message": {"msg": "a", "recipient": "group[a,b"}}, "structured_message.recipient"),
        ({"message": "a", "interrupt": "yes"}, "interrupt"),
    ],
)
async def test_a_bad_message_is_told_by_its_field(ours: Scene, body: Json, field: str) -> None:
    agent = await ours.quiet_agent()
    answer = (await ours.api.ask("POST", f"/agents/{agent['id']}/message", body)).expect(400)
    assert list(answer.json["error"]["details"]["fields"]) == [field]


STAGES = (
    *("authenticate", "route", "record", "signal", "wake", "claim"),
    *("resolve", "send", "answer", "end", "reply", "drain"),
)


async def test_a_scrape_after_a_dispatch_tells_of_it(ours: Scene) -> None:
    agent = await ours.agent()
    (await ours.api.do("suspend", agent["id"])).expect(200)
    text = (await ours.api.ask("GET", "/metrics")).expect(200).text
    for sample in (
        'pointsman_transitions_total{from="accepted",op="suspend",to="routed"}',
        'pointsman_transitions_total{from="in_progress",op="suspend",to="done"}',
        'pointsman_dispatch_seconds_count{end="done",op="suspend"}',
        'pointsman_http_seconds_count{method="POST",route="/api/v1/agents/{agent}/suspend",status="200"}',
        *(f'pointsman_stage_seconds_count{{stage="{stage}"}}' for stage in STAGES),
    ):
        assert sample in text, [line for line in text.splitlines() if "suspend" in line]


async def test_a_scrape_tells_what_waits_now(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    (await ours.api.message(agent["id"], "later")).expect(202)

    async def told() -> bool | None:
        text = (await ours.api.ask("GET", "/metrics")).expect(200).text
        return 'pointsman_unfinished{op="message",state="pending"}' in text

    await eventually(told, "the message among what is unfinished")
