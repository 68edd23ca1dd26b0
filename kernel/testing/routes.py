"""What every route strategy must keep, as tests: subclass `RouteContract` and name the plugin.

    class TestMine(RouteContract):
        plugin = mine.Plugin
        config = {"region": "eu"}
        agent_labels = ({}, {"region": "eu"})

Each test is an ordinary method without arguments, so that it runs under any runner. What it complains about is in the
AssertionError that it raises.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import msgspec

from kernel.agent import Phase
from kernel.broker import Broker, BrokerId
from kernel.config import Mistake, PluginEntry, misconfigured
from kernel.config.settings import BreakerSettings
from kernel.hooks import Hooks, Implementation
from kernel.intent import Op
from kernel.loader import built_from
from kernel.loader.prepare import looked_at
from kernel.node import NodeId
from kernel.route import PlacementRequest, RouteAdvice, RouteRequest, agrees, standard
from kernel.testing.purity import watched

HERE, ELSEWHERE = NodeId("0190c7b2-0000-7000-8000-000000000001"), NodeId("0190c7b2-0000-7000-8000-000000000002")
LONGEST_REASON = 200
"""Characters: a reason is shown in one line, and kept with every refusal."""
TRIES = 5
"""How often a call that took too long is tried again: the machine may have been busy, the strategy is not."""


def a_broker(**changes: Any) -> Broker:
    """A broker that is connected to this node, but for `changes`."""
    usual: dict[str, Any] = {
        "id": BrokerId("0190c7b2-0000-7000-8000-0000000000b1"),
        "name": "Build EU",
        "slug": "build-eu",
        "online": True,
        "connected_hub_id": HERE,
        "connection_epoch": 1,
    }
    return Broker(**{**usual, **changes})


def a_request(**changes: Any) -> RouteRequest:
    """A start of an agent whose broker's socket is on this node, but for `changes`."""
    usual: dict[str, Any] = {
        "op": Op.START,
        "agent_id": "0190c7b2-0000-7000-8000-0000000000a1",
        "agent_slug": "worker",
        "project_id": "0190c7b2-0000-7000-8000-0000000000c1",
        "phase": Phase.STOPPED,
        "labels": {},
        "broker": a_broker(),
        "node_id": HERE,
        "socket_here": True,
        "held_elsewhere": False,
        "direct": False,
        "hold": False,
        "now": False,
        "between_sockets": False,
    }
    return RouteRequest(**{**usual, **changes})


class RouteContract:
    """The tests. `plugin` is a module or a class, as a YAML file would name it."""

    plugin: ClassVar[Any]
    config: ClassVar[dict[str, object]] = {}
    agent_labels: ClassVar[Sequence[Mapping[str, str]]] = ({},)
    """Labels that matter to this strategy: the contract is tried with each."""
    broker_labels: ClassVar[Sequence[Mapping[str, str]]] = ({},)

    # -- it fits

    def test_a_hub_takes_it(self) -> None:
        """Its `api`, its configuration, and the names, colour and arguments of its hooks."""
        hooks = self.strategy().hooks
        assert "rank_route" in hooks or "rank_brokers" in hooks, "it has neither rank_route nor rank_brokers"

    # -- it is pure

    def test_the_same_request_gets_the_same_answer(self) -> None:
        """Whatever was asked before, and on every hub: two stand for all."""
        requests, here, there = self.requests(), self.strategy(), self.strategy()
        first = [here.rank_route(request) for request in requests]
        for request, before in zip(reversed(requests), reversed(first), strict=True):
            for _ in range(2):
                now, other = here.rank_route(request), there.rank_route(request)
                assert now == before, f"it gave {before}, and later {now}, to {request}"
                assert other == before, f"it gave {before}, and on another hub {other}, to {request}"

    def test_it_reads_nothing_but_the_request(self) -> None:
        """No clock, no chance, no file, no socket, no other thread."""
        strategy, requests = self.strategy(), self.requests()
        strategy.rank_route(requests[0])  # what is imported at first use is imported now
        for request in requests:
            with watched() as seen:
                strategy.rank_route(request)
            assert not seen, f"it called {', '.join(sorted(seen))}: decide from the request and the config alone"

    def test_it_leaves_the_request_as_it_is(self) -> None:
        """Labels are dicts, and the next strategy is shown the same ones."""
        strategy = self.strategy()
        for request in self.requests():
            before = msgspec.json.encode(request)
            strategy.rank_route(request)
            assert msgspec.json.encode(request) == before, f"it changed the request, which was {before.decode()}"

    def test_it_answers_at_once(self) -> None:
        strategy = self.strategy()
        for request in self.requests():
            assert _in_time(strategy, request), f"it took more than breaker.slow: the hub stands still, for {request}"

    # -- its answers are of use

    def test_it_gives_an_advice_that_the_request_allows(self) -> None:
        for request, answer in self._answers():
            assert isinstance(answer, RouteAdvice), f"it gave {answer!r}, which is no RouteAdvice, to {request}"
            assert agrees(answer, request), f"it gave {answer.route}, which the request contradicts: {request}"

    def test_it_gives_a_reason_in_one_line(self) -> None:
        for request, answer in self._answers():
            reason, retry_after = answer.reason, answer.retry_after
            assert reason.strip(), f"it gave no reason, to {request}"
            assert reason.isprintable(), f"its reason is {reason!r}, to {request}"
            assert len(reason) <= LONGEST_REASON, f"its reason has {len(reason)} characters: {reason[:60]}…"
            assert 0 <= retry_after < math.inf, f"its retry_after is {retry_after}, to {request}"

    def test_the_kernel_decides_where_it_abstains(self) -> None:
        """Behind it stands the kernel's own order: each call gets a verdict, and a hub counts no fault."""
        hooks = self.strategy().in_a_hub()
        for request in self.requests():
            answer = hooks.rank_route.ask(request, accept=partial(_allowed, request))
            assert agrees(answer.value if answer else standard(request), request), f"no verdict for {request}"
        assert not _faults(hooks), f"a hub would count as faults: {_faults(hooks)}"

    # -- placement

    def test_it_ranks_candidates_and_nobody_else(self) -> None:
        strategy, hooks = self.strategy(), self.strategy().in_a_hub()
        for request in self.placements():
            before = strategy.rank_brokers(request)
            answer = hooks.rank_brokers.ask(request)
            ranked = answer.value if answer else ()
            ids = [broker.id for broker in ranked]
            assert (before or ()) == ranked, f"it gave {before}, and on another hub {ranked}, to {request}"
            assert set(ids) <= {broker.id for broker in request.candidates}, f"it named a stranger: {ids}"
            assert len(set(ids)) == len(ids), f"it named a broker twice: {ids}"
        assert not _faults(hooks), f"a hub would count as faults: {_faults(hooks)}"

    # -- what it is tried with; a subclass may add to it

    def strategy(self) -> Strategy:
        """Raises: AssertionError with every reason why a hub would not take it."""
        return Strategy(self.plugin, self.config)

    def requests(self) -> list[RouteRequest]:
        """Every combination of operation, delivery, socket and labels that a hub can meet."""
        return list(_requests(self.agent_labels, list(_brokers(self.broker_labels))))

    def placements(self) -> Iterator[PlacementRequest]:
        brokers = tuple(
            msgspec.structs.replace(broker, id=BrokerId(f"0190c7b2-0000-7000-8000-{n:012}"), slug=f"broker-{n}")
            for n, broker in enumerate(_brokers(self.broker_labels))
        )
        for labels, candidates in itertools.product(self.agent_labels, (brokers, brokers[::-1], brokers[:1], ())):
            yield PlacementRequest(project_id="p", agent_slug="worker", labels=dict(labels), candidates=candidates)

    def _answers(self) -> Iterator[tuple[RouteRequest, Any]]:
        strategy = self.strategy()
        for request in self.requests():
            answer = strategy.rank_route(request)
            if answer is not None:
                yield request, answer


# -- the strategy, and what it is asked -----------------------------------------------------------------------


class Strategy:
    """A plugin built as a hub builds it, called without the hub's protection."""

    def __init__(self, plugin: Any, config: dict[str, object]) -> None:
        """Raises: AssertionError with every reason why a hub would not take it."""
        mistakes: list[Mistake] = []
        prepared = looked_at(PluginEntry.of("strategy", config), "", plugin, mistakes)
        if prepared.shape is None or mistakes:
            raise AssertionError(misconfigured(mistakes).message)
        self.hooks = prepared.shape.hooks
        built = built_from(prepared)
        self._calls = {hook: getattr(built, name) for hook, name in prepared.shape.attributes.items()}

    def rank_route(self, request: RouteRequest) -> Any:
        """Its answer; None too where it has no such hook."""
        return self._ask("rank_route", request)

    def rank_brokers(self, request: PlacementRequest) -> Any:
        return self._ask("rank_brokers", request)

    def _ask(self, hook: str, request: object) -> Any:
        return self._calls[hook](*[request][: len(self.hooks[hook])]) if hook in self._calls else None

    def in_a_hub(self) -> Hooks:
        """Behind the chains that a hub calls, which count faults."""
        implementations = [
            Implementation(plugin="strategy", hook=hook, call=call, arguments=self.hooks[hook])
            for hook, call in self._calls.items()
        ]
        return Hooks(implementations, BreakerSettings(), time.monotonic)


def _sockets(broker: Broker) -> Iterator[dict[str, Any]]:
    """Where the broker's socket may be: here, elsewhere, lost a moment ago, gone; and then with an endpoint, too."""
    replace = msgspec.structs.replace
    yield {"broker": broker, "socket_here": True}
    elsewhere = replace(broker, connected_hub_id=ELSEWHERE)
    yield {"broker": elsewhere, "socket_here": False, "held_elsewhere": True}
    for missing, between in ((1.0, True), (3_600.0, False)):
        away = replace(broker, online=False, connected_hub_id=None, missing_for=missing, disconnect_code=1006)
        yield {"broker": away, "socket_here": False, "between_sockets": between}
        reached = replace(away, endpoint="https://broker.example")
        yield {"broker": reached, "socket_here": False, "direct": True, "between_sockets": between}


def _brokers(labels: Sequence[Mapping[str, str]]) -> Iterator[Broker]:
    for one, paused in itertools.product(labels, (False, True)):
        yield a_broker(labels=dict(one), paused=paused)


def _requests(agent_labels: Sequence[Mapping[str, str]], brokers: Sequence[Broker]) -> Iterator[RouteRequest]:
    """Every combination that a hub can meet."""
    deliveries: tuple[dict[str, bool], ...] = ({}, {"hold": True}, {"now": True})
    for op, labels, broker, delivery in itertools.product(Op, agent_labels, brokers, deliveries):
        for socket in _sockets(broker):
            yield a_request(op=op, labels=dict(labels), **socket, **delivery)


def _allowed(request: RouteRequest, advice: object) -> bool:
    return agrees(advice, request)


def _faults(hooks: Hooks) -> list[str]:
    return [stat.last_fault for stat in hooks.stats() if stat.faults]


def _in_time(strategy: Strategy, request: RouteRequest) -> bool:
    for _ in range(TRIES):
        started = time.perf_counter()
        strategy.rank_route(request)
        if time.perf_counter() - started < BreakerSettings().slow:
            return True
    return False
