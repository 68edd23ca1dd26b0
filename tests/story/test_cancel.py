"""A cancel ends what was not sent, asks the broker about what was, and lies about neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


async def test_a_pending_intent_is_cancelled_and_never_sent(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.offline()
    answer = (await ours.api.message(agent["id"], "never mind")).expect(202)
    told = (await ours.api.cancel(answer.dispatch)).expect(200)
    assert told.json["outcome"] == "cancelled"
    assert told.json["dispatch"]["state"] == "cancelled"
    await ours.online()
    (await ours.api.message(agent["id"], "this one", prefer="wait=20")).expect(200)
    assert ours.broker.events(what="request", dispatch=answer.dispatch) == []
    await ours.check()


async def test_an_intent_behind_another_is_cancelled_before_it_is_sent(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", gate="slow")
    first = await ours.api.do("restart", agent["id"], prefer="respond-async")
    await ours.broker.seen(what="effect", op="restart")
    second = await ours.api.do("suspend", agent["id"], prefer="respond-async")
    outcome = (await ours.api.cancel(second.dispatch)).expect(200).json["outcome"]
    assert outcome in ("cancelled", "cancel_requested")
    await ours.broker.release("slow")
    assert (await ours.api.ended(second.dispatch))["state"] == "cancelled"
    assert (await ours.api.ended(first.dispatch))["state"] == "done"
    assert ours.broker.events(what="request", op="suspend") == []
    await ours.check()


async def test_a_sent_intent_is_stopped_by_a_broker_that_can(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", gate="slow", effect="after")
    answer = await ours.api.do("restart", agent["id"], prefer="respond-async")
    await ours.broker.seen(what="request", op="restart")
    assert (await ours.api.cancel(answer.dispatch)).expect(200).json["outcome"] == "cancel_requested"
    row = await ours.api.ended(answer.dispatch)
    assert row["state"] == "cancelled"
    assert ours.broker.effects(op="restart") == []
    await ours.check()


async def test_a_sent_intent_that_cannot_be_stopped_ends_truthfully(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", gate="slow")
    answer = await ours.api.do("restart", agent["id"], prefer="respond-async")
    await ours.broker.seen(what="effect", op="restart")
    assert (await ours.api.cancel(answer.dispatch)).expect(200).json["outcome"] == "cancel_requested"
    await ours.broker.release("slow")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    await ours.check()


async def test_an_ended_intent_cannot_be_cancelled(ours: Scene) -> None:
    agent = await ours.agent()
    answer = (await ours.api.do("stop", agent["id"])).expect(200)
    told = (await ours.api.cancel(answer.dispatch)).expect(200).json
    assert (told["outcome"], told["dispatch"]["state"]) == ("already_ended", "done")


@pytest.mark.parametrize("later", ["stop", "delete"])
async def test_a_later_stop_or_delete_supersedes_starts_that_nobody_claimed(ours: Scene, later: str) -> None:
    agent = await ours.quiet_agent()
    await ours.offline()
    start = (await ours.api.do("start", agent["id"], prefer="deliver=hold")).expect(202)
    if later == "stop":
        over = await ours.api.do("stop", agent["id"], prefer="deliver=hold")
    else:
        over = await ours.api.delete(agent["id"], prefer="deliver=hold")
    row = await ours.api.ended(start.dispatch)
    assert row["state"] == "cancelled"
    assert "superseded" in str((await ours.api.explain(start.dispatch))["transitions"][-1])
    await ours.online()
    assert (await ours.api.ended(over.expect(202).dispatch))["state"] == "done"
    assert ours.broker.effects(op="start") == []


async def test_requeue_makes_a_new_intent(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="stop", times=1, status=500, body="broken")
    failed = (await ours.api.do("stop", agent["id"])).expect(502)
    again = (await ours.api.ask("POST", f"/dispatches/{failed.dispatch}/requeue")).expect(202)
    assert again.json["id"] != failed.dispatch
    row = await ours.api.ended(again.json["id"])
    assert (row["state"], row["requeuedFrom"]) == ("done", failed.dispatch)
    assert (await ours.api.dispatch(failed.dispatch))["state"] == "failed"
