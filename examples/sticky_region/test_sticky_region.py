"""The strategy keeps the contract of every route strategy, and does what it says."""

from __future__ import annotations

from typing import ClassVar

import sticky_region
from kernel import Op, PlacementRequest, Route
from kernel.testing.routes import RouteContract, a_broker, a_request

EU, US = {"region": "eu"}, {"region": "us"}
STRATEGY = sticky_region.Plugin(sticky_region.Config())


class TestContract(RouteContract):
    plugin = sticky_region.Plugin
    agent_labels: ClassVar = ({}, EU)
    broker_labels: ClassVar = ({}, EU, US)


def test_a_start_elsewhere_is_refused() -> None:
    advice = STRATEGY.rank_route(a_request(op=Op.START, labels=EU, broker=a_broker(labels=US)))
    assert advice is not None
    assert advice.route is Route.REFUSE
    assert "eu" in advice.reason


def test_an_agent_elsewhere_can_still_be_stopped() -> None:
    assert STRATEGY.rank_route(a_request(op=Op.STOP, labels=EU, broker=a_broker(labels=US))) is None


def test_a_new_agent_goes_to_a_broker_of_its_region() -> None:
    eu, us = a_broker(id="1", labels=EU), a_broker(id="2", labels=US)
    request = PlacementRequest(project_id="p", agent_slug="worker", labels=EU, candidates=(us, eu))
    assert STRATEGY.rank_brokers(request) == (eu,)
