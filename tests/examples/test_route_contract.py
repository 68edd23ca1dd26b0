"""The contract of route strategies finds what is wrong with a strategy, and lets the built-in ones pass."""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from kernel import Broker, Op, PlacementRequest, Route, RouteAdvice, RouteRequest, hookimpl
from kernel.testing.routes import RouteContract, a_broker
from plugins.routes import direct, forward, hold, local, refuse

REFUSE = RouteAdvice(route=Route.REFUSE, reason="because")
Answer = Callable[[RouteRequest], Any]


@pytest.mark.parametrize("module", [local, forward, direct, hold, refuse])
def test_a_built_in_strategy_keeps_it(module: ModuleType) -> None:
    assert broken_tests(module) == {}


def test_one_that_always_abstains_keeps_it() -> None:
    assert broken_tests(strategy(lambda _: None)) == {}


@pytest.mark.parametrize(
    ("answer", "test", "told"),
    [
        (lambda _: 7, "test_it_gives_an_advice_that_the_request_allows", "no RouteAdvice"),
        (
            lambda _: RouteAdvice(route=Route.LOCAL, reason="always"),
            "test_it_gives_an_advice_that_the_request_allows",
            "contradicts",
        ),
        (lambda _: 1 / 0, "test_the_kernel_decides_where_it_abstains", "ZeroDivisionError"),
        (lambda _: time.time() and None, "test_it_reads_nothing_but_the_request", "time.time"),
        (lambda _: [datetime.datetime.now(datetime.UTC)][1:] or None, "test_it_reads_nothing_but_the_request", "now"),
        (lambda _: random.random() and None, "test_it_reads_nothing_but_the_request", "random"),
        (lambda _: Path().exists() and None, "test_it_reads_nothing_but_the_request", "stat"),
        (lambda _: print(end=""), "test_it_reads_nothing_but_the_request", "print"),
        (lambda _: time.sleep(0.11), "test_it_answers_at_once", "more than breaker.slow"),
        (lambda request: request.labels.update(mine="yes"), "test_it_leaves_the_request_as_it_is", "changed"),
        (
            lambda _: RouteAdvice(route=Route.REFUSE, reason=" "),
            "test_it_gives_a_reason_in_one_line",
            "no reason",
        ),
        (
            lambda _: RouteAdvice(route=Route.REFUSE, reason="one\ntwo"),
            "test_it_gives_a_reason_in_one_line",
            "reason is",
        ),
        (
            lambda _: RouteAdvice(route=Route.REFUSE, reason="never", retry_after=float("inf")),
            "test_it_gives_a_reason_in_one_line",
            "retry_after",
        ),
    ],
)
def test_a_strategy_that_breaks_it_is_told_so(answer: Answer, test: str, told: str) -> None:
    assert told in broken_tests(strategy(answer), few=True)[test]


def test_a_strategy_that_counts_its_calls_is_told_so() -> None:
    calls: list[Op] = []

    def answer(request: RouteRequest) -> RouteAdvice | None:
        calls.append(request.op)
        return REFUSE if len(calls) % 3 == 0 else None

    assert "it gave None, and" in broken_tests(strategy(answer))["test_the_same_request_gets_the_same_answer"]


def test_a_strategy_that_no_hub_takes_is_told_why() -> None:
    class Plugin:
        api = 1

        @hookimpl
        async def rank_route(self, requests: RouteRequest) -> None: ...

    told = broken_tests(Plugin)["test_a_hub_takes_it"]
    assert "expected `def rank_route`" in told
    assert "did you mean request?" in told


def test_a_plugin_of_another_kind_is_told_so() -> None:
    class Plugin:
        api = 1

        @hookimpl
        def on_transition(self) -> None: ...

    assert "neither rank_route nor rank_brokers" in broken_tests(Plugin)["test_a_hub_takes_it"]


@pytest.mark.parametrize(
    ("ranked", "told"),
    [
        (lambda _: (a_broker(id="stranger"),), "stranger"),
        (lambda request: request.candidates * 2, "twice"),
        (lambda request: list(request.candidates), "it gave [Broker"),
    ],
)
def test_a_ranking_of_anything_but_candidates_is_told_so(ranked: Callable[[PlacementRequest], Any], told: str) -> None:
    class Plugin:
        api = 1

        @hookimpl
        def rank_brokers(self, request: PlacementRequest) -> tuple[Broker, ...] | None:
            answer: tuple[Broker, ...] = ranked(request)
            return answer

    assert told in broken_tests(Plugin)["test_it_ranks_candidates_and_nobody_else"]


def strategy(answer: Answer) -> type:
    class Plugin:
        api = 1

        @hookimpl
        def rank_route(self, request: RouteRequest) -> Any:
            return answer(request)

    return Plugin


def broken_tests(thing: Any, *, few: bool = False) -> dict[str, str]:
    """Test → what it complains about."""

    class Contract(RouteContract):
        plugin: ClassVar = thing

        def requests(self) -> list[RouteRequest]:
            return super().requests()[:2] if few else super().requests()

    found: dict[str, str] = {}
    for name in dir(Contract):
        if name.startswith("test_"):
            try:
                getattr(Contract(), name)()
            except Exception as wrong:
                found[name] = f"{type(wrong).__name__}: {wrong}"
    return found
