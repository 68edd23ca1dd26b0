"""A strategy that is wrong is counted, skipped and switched off where everybody sees it, and the work goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.conftest import ExtendedHub, plugin_row
from tests.harness.hubclient import HubClient, Json
from tests.harness.scenes import Scene, scene

pytestmark = pytest.mark.anyio

STRATEGY = """
import time
from kernel import Route, RouteAdvice, hookimpl

api = 1
name = "wrong"

@hookimpl
def rank_route(request):
    {answer}
"""
WAYS = {
    "raises": ("raise ValueError('no idea')", "raised ValueError: no idea"),
    "exits": ("raise SystemExit(3)", "raised SystemExit: 3"),
    "answers nonsense": ("return 'local'", "gave a str instead of a RouteAdvice"),
    "contradicts": ("return RouteAdvice(route=Route.FORWARD, reason='elsewhere')", "the question contradicts"),
    "blocks": ("time.sleep(0.2)", "more than 0.1 s"),
}
TRIPS = 5
"""Faults after which a plugin is switched off: `breaker.faults`."""


@pytest.mark.parametrize("way", WAYS)
async def test_the_work_goes_on_while_a_wrong_strategy_is_switched_off(way: str, tmp_path: Path) -> None:
    answer, told = WAYS[way]
    (tmp_path / "wrong.py").write_text(STRATEGY.format(answer=answer))
    async with (
        ExtendedHub(tmp_path, "  - use: ./wrong.py\n") as hub,
        scene(hub, hub.api, tmp_path / "scene") as world,
    ):
        agent = await world.agent()
        before = await plugin_row(hub.api, "wrong")
        assert (before["state"], fault_of(before)["faults"]) == ("on", 1)
        assert told in fault_of(before)["lastFault"]
        for _ in range(TRIPS + 1):
            await works(world, agent)
        after = await plugin_row(hub.api, "wrong")
        assert (after["state"], fault_of(after)["faults"]) == ("switched_off", TRIPS)
        assert told in after["reason"]
        assert await faults_in_metrics(hub.api) == TRIPS
        assert hub.log.count("plugin wrong is switched off") == 1
        await world.check()


async def works(world: Scene, agent: Json) -> None:
    """A call goes the kernel's own way."""
    done = (await world.api.do("restart", agent["id"])).expect(200)
    row = await world.api.dispatch(done.dispatch)
    assert (row["state"], row["route"]) == ("done", "local")


def fault_of(row: Json) -> Json:
    (hook,) = row["hooks"]
    assert isinstance(hook, dict)
    return hook


async def faults_in_metrics(hub: HubClient) -> float:
    text = (await hub.ask("GET", "/metrics")).expect(200).text
    found = re.search(r'^pointsman_plugin_faults_total\{(.*plugin="wrong".*)\} (\S+)$', text, re.MULTILINE)
    assert found, "no faults of this plugin in /metrics"
    assert 'hook="rank_route"' in found[1]
    return float(found[2])
