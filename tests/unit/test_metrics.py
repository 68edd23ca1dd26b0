"""metrics.prometheus and metrics.log: the names and labels of design/contract.md, and no id in any of them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kernel import config
from kernel.clock import Instant
from kernel.config.decode import decode
from kernel.host import Gauges
from kernel.intent import IntentId, Op
from kernel.transition import Transition
from plugins.metrics import log as metrics_log
from plugins.metrics.prometheus import Plugin

ROOT = Path(__file__).resolve().parents[2]
GAUGES = Gauges(
    links=3,
    bus_state="slow",
    bus_reconnects=2,
    bus_roundtrip=0.004,
    unfinished={("start", "pending"): 5},
    stuck_messages=1,
    late_ends=4,
    conflicts=6,
    untold=5,
    links_closed={4409: 2},
    links_refused={401: 7},
    storage_batch=12.0,
    plugin_seconds={("mine", "rank_route"): (10, 0.5)},
    plugin_faults={("mine", "rank_route"): 1},
)
INTENT = IntentId("0193b8e4-0000-7000-8000-000000000001")
ACCEPTED_AT = 0x0193B8E40000 * 1_000
"""What the id says, in microseconds."""


class Hub:
    gauges = GAUGES


def step(to: str, *, after: float = 0.0) -> Transition:
    return Transition(
        intent_id=INTENT,
        op=Op.START,
        n=1,
        at=Instant(ACCEPTED_AT + int(after * 1_000_000)),
        from_state="in_progress",
        to_state=to,
        reason="answered",
        node_id="node-1",
        epoch=7,
        attempt=1,
        seconds=0.25,
    )


def scraped(plugin: Plugin) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""
    text = plugin.collect_metrics(cast("Any", Hub()))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(exporter: Plugin, sample: str, /, **labels: str) -> float:
    return scraped(exporter)[f"pointsman_{sample}", tuple(sorted(labels.items()))]


def test_every_transition_is_counted() -> None:
    plugin = Plugin()
    for _ in range(3):
        plugin.on_transition(step("done"))
    counted = {"op": "start", "from": "in_progress", "to": "done"}
    assert value(plugin, "transitions_total", **counted) == 3


def test_an_end_is_measured_from_the_acceptance() -> None:
    plugin = Plugin()
    plugin.on_transition(step("pending", after=5.0))
    plugin.on_transition(step("done", after=20.0))
    assert value(plugin, "dispatch_seconds_count", op="start", end="done") == 1
    assert value(plugin, "dispatch_seconds_sum", op="start", end="done") == 20.0
    assert not any(dict(labels).get("end") == "pending" for _, labels in scraped(plugin))


def test_stages_and_requests_are_measured() -> None:
    plugin = Plugin()
    plugin.on_stage("record", 0.002)
    plugin.on_request("/api/v1/agents/{agent}", "GET", 200, 0.01)
    assert value(plugin, "stage_seconds_sum", stage="record") == 0.002
    labels = {"route": "/api/v1/agents/{agent}", "method": "GET", "status": "200"}
    assert value(plugin, "http_seconds_count", **labels) == 1


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("links", {}, 3),
        ("messages_stuck", {}, 1),
        ("late_ends_total", {}, 4),
        ("conflicts_total", {}, 6),
        ("untold_total", {}, 5),
        ("unfinished", {"op": "start", "state": "pending"}, 5),
        ("link_closed_total", {"code": "4409"}, 2),
        ("link_refused_total", {"code": "401"}, 7),
        ("bus_state", {"state": "slow"}, 1),
        ("bus_state", {"state": "healthy"}, 0),
        ("bus_reconnects_total", {}, 2),
        ("bus_roundtrip_seconds", {}, 0.004),
        ("storage_batch", {}, 12),
        ("plugin_seconds_sum", {"plugin": "mine", "hook": "rank_route"}, 0.5),
        ("plugin_seconds_count", {"plugin": "mine", "hook": "rank_route"}, 10),
        ("plugin_faults_total", {"plugin": "mine", "hook": "rank_route"}, 1),
    ],
)
def test_levels_are_read_at_the_scrape(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(Plugin(), name, **labels) == expected


def test_no_label_holds_an_id() -> None:
    plugin = Plugin()
    plugin.on_transition(step("done"))
    labels = [text for _, pairs in scraped(plugin) for _, text in pairs]
    assert not [text for text in labels if re.search(r"[0-9a-f]{8}-|node-1", text)]


def test_every_sample_is_one_of_ours() -> None:
    plugin = Plugin()
    plugin.on_transition(step("done"))
    assert all(name.startswith("pointsman_") and not name.endswith("_created") for name, _ in scraped(plugin))


def test_two_plugins_share_no_registry() -> None:
    one, other = Plugin(), Plugin()
    one.on_stage("record", 1.0)
    assert not any(name == "pointsman_stage_seconds_sum" for name, _ in scraped(other))


def test_the_log_has_one_line_for_a_transition(caplog: pytest.LogCaptureFixture) -> None:
    plugin = metrics_log.Plugin(metrics_log.LogConfig())
    with caplog.at_level(logging.INFO, logger="pointsman.transitions"):
        plugin.on_transition(step("done"))
    line = "op=start n=1 from=in_progress to=done reason=answered seconds=0.250000 node=node-1 epoch=7 attempt=1"
    assert caplog.messages == [f"transition intent={INTENT} {line}"]


def test_a_log_that_nobody_reads_costs_no_line(caplog: pytest.LogCaptureFixture) -> None:
    plugin = metrics_log.Plugin(metrics_log.LogConfig(level="debug"))
    with caplog.at_level(logging.INFO, logger="pointsman.transitions"):
        plugin.on_transition(step("done"))
    assert caplog.messages == []


@pytest.mark.parametrize(("sets", "level"), [((), logging.DEBUG), (("plugins.metrics.log.level=info",), logging.INFO)])
def test_make_run_leaves_the_terminal_calm_unless_it_is_asked(
    caplog: pytest.LogCaptureFixture, sets: tuple[str, ...], level: int
) -> None:
    settings = config.load(ROOT / "conf/local.yaml", sets, {})
    (entry,) = (entry for entry in settings.plugins if entry.use == "metrics.log")
    read = decode(entry.config, metrics_log.LogConfig, "", [])
    assert isinstance(read, metrics_log.LogConfig)
    with caplog.at_level(logging.DEBUG, logger="pointsman.transitions"):
        metrics_log.Plugin(read).on_transition(step("done"))
    assert [record.levelno for record in caplog.records] == [level]
