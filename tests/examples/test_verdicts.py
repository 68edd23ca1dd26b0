"""What a strategy advises is what the dispatch shows: its route, its reason, its refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.conftest import ExtendedHub
from tests.harness.scenes import scene

pytestmark = pytest.mark.anyio

ALWAYS_STORED = """
from kernel import Route, RouteAdvice, hookimpl

api = 1

@hookimpl
def rank_route(request):
    return None if request.now else RouteAdvice(route=Route.HOLD, reason="everything is stored first")
"""
NOT_TODAY = """
from kernel import Op, Route, RouteAdvice, hookimpl

api = 1

@hookimpl
def rank_route(request):
    return RouteAdvice(route=Route.REFUSE, reason="not today", retry_after=7.0) if request.op is Op.STOP else None
"""


async def test_a_verdict_of_hold_is_shown_and_goes_out_at_once_while_the_broker_is_here(tmp_path: Path) -> None:
    """HOLD stores; whoever holds the socket takes it. Without the strategy this stop would be LOCAL."""
    (tmp_path / "stored.py").write_text(ALWAYS_STORED)
    async with (
        ExtendedHub(tmp_path, "  - use: ./stored.py\n") as hub,
        scene(hub, hub.api, tmp_path / "scene") as world,
    ):
        agent = await world.agent()
        stored = await world.api.dispatch((await world.api.do("stop", agent["id"])).expect(200).dispatch)
        told = await world.api.explain(stored["id"])
        assert (stored["state"], stored["route"]) == ("done", "hold")
        steps = [(step["from"], step["to"]) for step in told["transitions"]]
        assert steps == [
            ("accepted", "routed"),
            ("routed", "pending"),
            ("pending", "in_progress"),
            ("in_progress", "done"),
        ]
        direct = await world.api.dispatch(
            (await world.api.do("start", agent["id"], prefer="deliver=now")).expect(200).dispatch
        )
        assert direct["route"] == "local"
        await world.check()


async def test_a_refusal_carries_the_reason_and_the_wait_that_the_strategy_gave(tmp_path: Path) -> None:
    (tmp_path / "not_today.py").write_text(NOT_TODAY)
    async with (
        ExtendedHub(tmp_path, "  - use: ./not_today.py\n") as hub,
        scene(hub, hub.api, tmp_path / "scene") as world,
    ):
        agent = await world.agent()
        answer = (await world.api.do("stop", agent["id"])).expect(503)
        assert answer.json["error"]["details"]["reason"] == "not today"
        assert "not today" in answer.json["error"]["message"]
        assert answer.headers["retry-after"] == "7"
        assert (await world.api.agent(agent["id"]))["phase"] == "running"
        metrics = (await world.api.ask("GET", "/metrics")).expect(200).text
        assert 'pointsman_transitions_total{from="accepted",op="stop",to="refused"} 1.0' in metrics
        await world.check()
