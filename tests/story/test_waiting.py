"""A caller who waits is told the truth: the outcome, that it goes on, or that nobody can know (P6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.harness.processes import eventually
from tests.harness.scenes import Background

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from tests.harness.hubclient import Json
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


async def test_the_http_wait_ends_with_202_and_a_place_to_look(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    answer = (await ours.api.do("stop", agent["id"])).expect(202)
    assert answer.headers["location"] == f"/api/v1/dispatches/{answer.dispatch}"
    assert (await ours.api.dispatch(answer.dispatch))["state"] == "in_progress"
    await ours.broker.release("slow")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    await ours.api.agent_is(agent["id"], "stopped")
    await ours.check()


async def test_respond_async_answers_at_once(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    answer = (await ours.api.do("stop", agent["id"], prefer="respond-async")).expect(202)
    assert answer.headers["location"].endswith(answer.dispatch)
    await ours.broker.release("slow")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"


async def test_a_caller_sets_its_own_wait(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    answer = await ours.api.do("stop", agent["id"], prefer="wait=1")
    assert answer.expect(202).took < 3
    await ours.broker.release("slow")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"


async def test_silence_for_a_rolling_window_is_told_as_unknown(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="silent")
    answer = await ours.api.do("stop", agent["id"], prefer="wait=60")
    assert answer.expect(504).code == "outcome_unknown"
    await ours.broker.seen(what="in", frame=lambda frame: isinstance(frame, dict) and frame.get("type") == "cancel")
    await ours.broker.release("silent")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    await ours.check()


async def test_silence_is_told_as_unknown_also_to_who_would_have_let_the_call_wait(ours: Scene) -> None:
    """Its broker was there, so nothing was written: it is in hand, and not waiting for anybody."""
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="silent")
    answer = await ours.api.do("stop", agent["id"], prefer="wait=60, deliver=hold")
    assert answer.expect(504).code == "outcome_unknown"
    await ours.broker.release("silent")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    await ours.check()


async def test_progress_of_this_intent_resets_the_window(ours: Scene, tasks: TaskGroup) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    call = Background()
    tasks.start_soon(call.run, lambda: ours.api.do("stop", agent["id"], prefer="wait=60"))
    asked = await ours.broker.seen(what="request", op="stop")
    for _ in range(5):
        await anyio.sleep(1.4)
        payload = {"agentId": agent["id"], "slug": agent["slug"], "dispatchId": asked["dispatch"]}
        await ours.broker.tell("send", frame={"type": "event", "event": "agent_status", "payload": payload})
    assert call.running
    await ours.broker.release("slow")
    (await call.answered()).expect(200)


async def test_an_unclaimed_intent_whose_deadline_passes_did_not_happen(ours: Scene) -> None:
    """It waits behind another of its lane, is never sent, and is told so."""
    agent = await ours.agent()
    await ours.broker.rule(op="restart", gate="slow")
    first = await ours.api.do("restart", agent["id"], prefer="respond-async")
    await ours.broker.seen(what="effect", op="restart")
    second = await ours.api.do("suspend", agent["id"], prefer="wait=30", x_dispatch_deadline="2")
    assert second.expect(504).code == "broker_timeout"
    await ours.broker.release("slow")
    assert (await ours.api.ended(first.dispatch))["state"] == "done"
    row = await ours.api.dispatch(second.dispatch)
    assert (row["state"], row["attempts"]) == ("expired", 0)
    (await ours.api.do("start", agent["id"])).expect(200)
    assert ours.broker.events(what="request", op="suspend") == []
    await ours.check()


async def test_a_deadline_may_be_an_instant(ours: Scene) -> None:
    agent = await ours.agent()
    when = datetime.now(UTC) + timedelta(seconds=20)
    answer = (await ours.api.do("stop", agent["id"], x_dispatch_deadline=when.isoformat())).expect(200)
    told = datetime.fromisoformat((await ours.api.dispatch(answer.dispatch))["deadlineAt"])
    assert abs((told - when).total_seconds()) < 2
    assert ours.broker.events(what="request", op="stop")[0]["timeoutMs"] <= 20_000


async def test_a_deadline_stays_where_it_is_when_the_call_gets_its_row_late(ours: Scene) -> None:
    """Nothing was written before the wait was over; what is sent again later must know the time that is left."""
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    answer = (await ours.api.do("stop", agent["id"], prefer="wait=3", x_dispatch_deadline="30")).expect(202)
    row = await ours.api.dispatch(answer.dispatch)
    span = datetime.fromisoformat(row["deadlineAt"]) - datetime.fromisoformat(row["created"])
    assert span.total_seconds() == pytest.approx(30, abs=0.5)
    await ours.broker.release("slow")
    await ours.check()


@pytest.mark.parametrize("headers", [{"x_dispatch_deadline": "soon"}, {"x_dispatch_deadline": "-1"},
                                     {"prefer": "wait=601"}, {"prefer": "deliver=perhaps"}])  # fmt: skip
async def test_a_preference_that_cannot_be_followed_is_refused(ours: Scene, headers: dict[str, str]) -> None:
    agent = await ours.agent()
    answer = await ours.api.do("stop", agent["id"], **headers)
    assert answer.expect(400).code == "validation_error"
    assert ours.broker.events(what="request", op="stop") == []


async def test_a_deadline_that_has_passed_is_never_sent(ours: Scene) -> None:
    agent = await ours.agent()
    when = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    answer = await ours.api.do("stop", agent["id"], x_dispatch_deadline=when)
    assert answer.status in (400, 504)
    assert ours.broker.events(what="request", op="stop") == []


async def test_a_caller_who_hangs_up_changes_nothing(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    with anyio.move_on_after(1):
        await ours.api.do("stop", agent["id"])
    dispatch = (await ours.broker.seen(what="request", op="stop"))["dispatch"]
    await ours.broker.release("slow")
    await ours.api.agent_is(agent["id"], "stopped")
    assert (await ours.api.dispatch(dispatch))["state"] == "done"


async def test_explain_tells_where_it_stands_at_every_stage(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", gate="slow")
    first = await ours.api.do("stop", agent["id"], prefer="respond-async")
    second = await ours.api.do("start", agent["id"], prefer="respond-async")
    await ours.broker.seen(what="effect", op="stop")

    async def at_the_broker() -> Json | None:
        found = await ours.api.explain(first.dispatch)
        return found if found["code"] in ("sent", "accepted") else None

    at_work = await eventually(at_the_broker, "the first told as sent")
    behind = await ours.api.explain(second.dispatch)
    assert at_work["owner"]["alive"] is True
    assert (behind["code"], behind["behind"]["id"]) == ("waiting_lane", first.dispatch)
    assert behind["sentence"]
    await ours.broker.release("slow")
    await ours.api.ended(second.dispatch)
    over = await ours.api.explain(second.dispatch)
    assert over["code"] == "ended"
    states = [step["to"] for step in over["transitions"]]
    assert states[-1] == "done"
    assert "in_progress" in states


async def test_silence_does_not_end_what_may_wait_for_its_broker(ours: Scene) -> None:
    """A held message lives for a day: who waits for it longer than a rolling window does not shorten that."""
    agent = await ours.agent()
    await ours.offline()
    answer = (await ours.api.message(agent["id"], "later", prefer="wait=9")).expect(202)
    assert answer.json["dispatchState"] == "pending"
    await ours.online()
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
