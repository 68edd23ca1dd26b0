"""The strategy keeps the contract of every route strategy, and does what it says."""

from __future__ import annotations

from typing import ClassVar

import maintenance_window
from kernel import Op, Route
from kernel.testing.routes import RouteContract, a_broker, a_request

STRATEGY = maintenance_window.Plugin(maintenance_window.Config(brokers=("build-eu",), retry_after=60.0))


class TestContract(RouteContract):
    plugin = maintenance_window.Plugin
    config: ClassVar = {"brokers": ["build-eu"]}
    broker_labels: ClassVar = ({}, {"maintenance": "on"}, {"maintenance": "off"})


def test_a_call_to_a_closed_broker_is_refused_and_told_when_to_come_back() -> None:
    advice = STRATEGY.rank_route(a_request(broker=a_broker(slug="build-eu")))
    assert advice is not None
    assert (advice.route, advice.reason, advice.retry_after) == (Route.REFUSE, "maintenance", 60.0)


def test_a_label_closes_a_broker_that_is_not_on_the_list() -> None:
    assert STRATEGY.rank_route(a_request(broker=a_broker(slug="other", labels={"maintenance": "on"})))
    assert STRATEGY.rank_route(a_request(broker=a_broker(slug="other", labels={"maintenance": "off"}))) is None


def test_an_agent_of_a_closed_broker_can_still_be_stopped() -> None:
    assert STRATEGY.rank_route(a_request(op=Op.STOP, broker=a_broker(slug="build-eu"))) is None
