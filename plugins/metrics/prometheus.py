"""Every number of the hub in Prometheus' text format; no id is ever a label."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from kernel import ENDED, Gauges, Host, Transition, hookimpl

DISPATCH_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
BUS_STATES = ("healthy", "slow", "blind")


class Plugin:
    api = 1

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._levels = Levels()
        self._registry.register(self._levels)
        self._transitions = Counter(
            "pointsman_transitions", "Steps of dispatches.", ("op", "from", "to"), registry=self._registry
        )
        self._dispatch = Histogram(
            "pointsman_dispatch_seconds",
            "From a dispatch's acceptance to its end.",
            ("op", "end"),
            registry=self._registry,
            buckets=DISPATCH_BUCKETS,
        )
        self._stage = Histogram(
            "pointsman_stage_seconds",
            "What the stages of a dispatch take.",
            ("stage",),
            registry=self._registry,
            buckets=STAGE_BUCKETS,
        )
        self._http = Histogram(
            "pointsman_http_seconds",
            "HTTP requests, from their head to their answer.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        # To find a child by its labels costs ten times what counting in it does; there are few, and for good.
        self._step = cache(self._transitions.labels)
        self._life = cache(self._dispatch.labels)
        self._part = cache(self._stage.labels)
        self._answered = cache(self._http.labels)

    @hookimpl
    def on_transition(self, transition: Transition) -> None:
        self._step(transition.op, transition.from_state, transition.to_state).inc()
        if transition.to_state in ENDED:
            self._life(transition.op, transition.to_state).observe(_age(transition))

    @hookimpl
    def on_stage(self, stage: str, seconds: float) -> None:
        self._part(stage).observe(seconds)

    @hookimpl
    def on_request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._answered(route, method, str(status)).observe(seconds)

    @hookimpl
    def collect_metrics(self, hub: Host) -> str:
        self._levels.gauges = hub.gauges
        return prometheus_client.generate_latest(self._registry).decode()


def _age(transition: Transition) -> float:
    """Seconds since the intent was accepted: its id is a UUIDv7, which carries the time."""
    accepted = int(transition.intent_id[:13].replace("-", ""), 16) * 1_000
    return max(0.0, (transition.at - accepted) / 1_000_000)


class Levels(Collector):
    """What the hub only counts itself, read when somebody scrapes."""

    def __init__(self) -> None:
        self.gauges: Gauges | None = None

    def describe(self) -> Iterator[Metric]:
        """Nothing to promise before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        seen = self.gauges
        if seen is None:
            return
        yield _gauge("links", "Brokers whose socket this hub holds.", seen.links)
        yield _gauge("messages_stuck", "Messages pending for more than five minutes.", seen.stuck_messages)
        yield _gauge("bus_roundtrip_seconds", "What the bus's last probe of itself took.", seen.bus_roundtrip)
        yield _gauge("storage_batch", "Transactions in the storage's last commit.", seen.storage_batch)
        yield _counter("bus_reconnects", "How often the bus's listener had to connect again.", seen.bus_reconnects)
        yield _counter("untold", "Transitions and measures that came faster than they could be counted.", seen.untold)
        yield _counter("late_ends", "Ends that came when somebody else owned the dispatch.", seen.late_ends)
        yield _counter("conflicts", "Brokers whose identity two processes used by turns.", seen.conflicts)
        yield from _labelled(seen)


def _labelled(seen: Gauges) -> Iterator[Metric]:
    unfinished = GaugeMetricFamily("pointsman_unfinished", "Dispatches that have not ended.", labels=("op", "state"))
    for (op, state), count in seen.unfinished.items():
        unfinished.add_metric((op, state), count)
    yield unfinished
    bus = GaugeMetricFamily("pointsman_bus_state", "1 for the state that the bus is in.", labels=("state",))
    for state in BUS_STATES:
        bus.add_metric((state,), seen.bus_state == state)
    yield bus
    yield _by_code("link_closed", "Sockets of brokers closed, by close code.", seen.links_closed)
    yield _by_code("link_refused", "Upgrades refused, by HTTP status.", seen.links_refused)
    spent = SummaryMetricFamily("pointsman_plugin_seconds", "Time spent in plugins.", labels=("plugin", "hook"))
    for names, (calls, seconds) in seen.plugin_seconds.items():
        spent.add_metric(names, calls, seconds)
    yield spent
    faults = CounterMetricFamily("pointsman_plugin_faults", "Faults of plugins.", labels=("plugin", "hook"))
    for names, count in seen.plugin_faults.items():
        faults.add_metric(names, count)
    yield faults


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pointsman_{name}", told, value=value)


def _counter(name: str, told: str, value: float) -> Metric:
    return CounterMetricFamily(f"pointsman_{name}", told, value=value)


def _by_code(name: str, told: str, counts: dict[int, int]) -> Metric:
    family = CounterMetricFamily(f"pointsman_{name}", told, labels=("code",))
    for code, count in counts.items():
        family.add_metric((str(code),), count)
    return family
