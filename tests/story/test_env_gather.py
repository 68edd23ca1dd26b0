"""An agent whose broker asks for environment: `create` answers 202, `POST …/env` finishes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.harness.hubclient import Answered
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio

NEEDS: dict[str, Any] = {
    "required": ["API_KEY", "HOME"],
    "hubHas": [],
    "brokerHas": ["HOME"],
    "needs": ["API_KEY"],
    "secretInfo": {"API_KEY": {"description": "where to find it"}},
}


async def half_made(ours: Scene) -> Answered:
    await ours.broker.rule(op="create", times=1, status=202, body=NEEDS, effect="none")
    return (await ours.api.post_agent(ours.project, ours.broker_id, gatherEnv=True)).expect(202)


async def test_create_tells_what_is_needed(ours: Scene) -> None:
    answer = await half_made(ours)
    assert answer.json["agent"]["phase"] == "provisioning"
    assert answer.json["envGather"]["needs"] == ["API_KEY"]
    assert answer.json["envGather"]["agentId"] == answer.json["agent"]["id"]
    assert ours.broker.events(what="request", op="create")[0]["json"]["gatherEnv"] is True
    assert (await ours.api.dispatch(answer.dispatch))["state"] == "done"


async def test_the_values_reach_the_broker_and_the_agent_runs(ours: Scene) -> None:
    agent = (await half_made(ours)).json["agent"]
    answer = await ours.api.do("env", agent["id"], {"env": {"API_KEY": "hush"}})
    assert answer.expect(200, 201).json["agent"]["phase"] == "running"
    sent = ours.broker.events(what="request", op="finalize_env")[0]
    assert sent["json"]["env"] == {"API_KEY": "hush"}
    await ours.check()


async def test_the_values_are_kept_nowhere_that_can_be_read(ours: Scene) -> None:
    agent = (await half_made(ours)).json["agent"]
    answer = await ours.api.do("env", agent["id"], {"env": {"API_KEY": "very-hush-hush"}})
    shown = await ours.api.ask("GET", f"/dispatches/{answer.dispatch}")
    assert "very-hush-hush" not in shown.text
    files = [ours.hub.directory / f"hub.db{end}" for end in ("", "-wal")]
    assert not any(b"very-hush-hush" in file.read_bytes() for file in files if file.exists())
    assert "very-hush-hush" not in ours.hub.log


async def test_env_for_an_agent_that_is_not_provisioning_is_refused(ours: Scene) -> None:
    agent = await ours.agent()
    answer = await ours.api.do("env", agent["id"], {"env": {"A": "b"}})
    assert answer.expect(409).code == "invalid_state"


async def test_the_broker_may_ask_again(ours: Scene) -> None:
    agent = (await half_made(ours)).json["agent"]
    await ours.broker.rule(op="finalize_env", times=1, status=202, body={**NEEDS, "needs": ["MORE"]}, effect="none")
    again = (await ours.api.do("env", agent["id"], {"env": {"API_KEY": "x"}})).expect(202)
    assert again.json["envGather"]["needs"] == ["MORE"]
    assert again.json["agent"]["phase"] == "provisioning"
    (await ours.api.do("env", agent["id"], {"env": {"MORE": "y"}})).expect(200, 201)
