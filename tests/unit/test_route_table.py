"""The route table of design/dispatch.md section 6, row by row, for the kernel's order and for the built-in plugins."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest

from kernel.agent import Phase
from kernel.broker import Broker, BrokerId
from kernel.intent import Op
from kernel.route import PREDICATES, Route, RouteAdvice, RouteRequest, agrees, standard
from plugins.routes import direct, forward, hold, local, refuse

STRATEGIES = (local.rank_route, forward.rank_route, direct.rank_route, hold.rank_route, refuse.rank_route)


class Row(NamedTuple):
    """A snapshot in seven yes-or-no facts, and what must come of it."""

    here: bool
    elsewhere: bool
    direct: bool
    paused: bool
    hold: bool
    now: bool
    between: bool
    route: Route
    reason: str


L, F, D, H, R = Route.LOCAL, Route.FORWARD, Route.DIRECT, Route.HOLD, Route.REFUSE
N, Y = False, True

# fmt: off
TABLE = [
    #   here elsewhere direct paused hold now between
    Row(Y, N, N, N, N, N, N, L, "socket_here"),
    Row(Y, N, N, N, Y, N, N, L, "socket_here"),
    Row(Y, N, N, N, N, Y, N, L, "socket_here"),
    Row(Y, N, N, N, N, N, Y, L, "socket_here"),
    Row(Y, N, N, Y, N, N, N, R, "paused"),
    Row(Y, N, N, Y, Y, N, N, H, "nobody_home"),
    Row(Y, N, N, Y, N, Y, N, R, "paused"),
    Row(N, Y, N, N, N, N, N, F, "held_elsewhere"),
    Row(N, Y, N, N, Y, N, N, F, "held_elsewhere"),
    Row(N, Y, N, N, N, Y, N, F, "held_elsewhere"),
    Row(N, Y, N, Y, N, N, N, R, "paused"),
    Row(N, Y, N, Y, Y, N, N, H, "nobody_home"),
    Row(N, Y, N, Y, N, Y, N, R, "paused"),
    Row(Y, N, Y, N, N, N, N, L, "socket_here"),
    Row(N, Y, Y, N, N, N, N, F, "held_elsewhere"),
    Row(N, N, Y, N, N, N, N, D, "has_endpoint"),
    Row(N, N, Y, N, Y, N, N, D, "has_endpoint"),
    Row(N, N, Y, N, N, Y, N, D, "has_endpoint"),
    Row(N, N, Y, N, N, N, Y, D, "has_endpoint"),
    Row(N, N, Y, Y, N, N, N, R, "paused"),
    Row(N, N, Y, Y, Y, N, N, H, "nobody_home"),
    Row(N, N, N, N, N, N, N, R, "nobody_home"),
    Row(N, N, N, N, Y, N, N, H, "nobody_home"),
    Row(N, N, N, N, N, Y, N, R, "nobody_home"),
    Row(N, N, N, N, Y, Y, N, R, "nobody_home"),
    Row(N, N, N, N, N, N, Y, H, "between_sockets"),
    Row(N, N, N, N, Y, N, Y, H, "nobody_home"),
    Row(N, N, N, N, N, Y, Y, R, "nobody_home"),
    Row(N, N, N, Y, N, N, N, R, "paused"),
    Row(N, N, N, Y, Y, N, N, H, "nobody_home"),
    Row(N, N, N, Y, N, N, Y, R, "paused"),
    Row(N, N, N, Y, N, Y, Y, R, "paused"),
]
# fmt: on
NOBODY = Row(N, N, N, N, N, N, N, R, "nobody_home")
NOBODY_NOW = Row(N, N, N, N, N, Y, N, R, "nobody_home")


def request(
    *,
    here: bool,
    elsewhere: bool,
    direct: bool,
    paused: bool,
    hold: bool,
    now: bool,
    between: bool,
    op: Op = Op.START,
) -> RouteRequest:
    return RouteRequest(
        op=op,
        agent_id="a",
        agent_slug="a",
        project_id="p",
        phase=Phase.RUNNING,
        labels={},
        broker=Broker(id=BrokerId("b"), name="b", slug="b", paused=paused),
        node_id="n",
        socket_here=here,
        held_elsewhere=elsewhere,
        direct=direct,
        hold=hold,
        now=now,
        between_sockets=between,
    )


def of_row(row: Row) -> RouteRequest:
    return request(
        here=row.here,
        elsewhere=row.elsewhere,
        direct=row.direct,
        paused=row.paused,
        hold=row.hold,
        now=row.now,
        between=row.between,
    )


def every_request() -> list[RouteRequest]:
    return [
        request(here=a, elsewhere=b, direct=c, paused=d, hold=e, now=f, between=g)
        for a, b, c, d, e, f, g in itertools.product((False, True), repeat=7)
    ]


def first_advice(asked: RouteRequest) -> RouteAdvice | None:
    return next((advice for advice in (ask(asked) for ask in STRATEGIES) if advice), None)


@pytest.mark.parametrize("row", TABLE)
def test_the_kernels_order_gives_the_row(row: Row) -> None:
    advice = standard(of_row(row))
    assert (advice.route, advice.reason) == (row.route, row.reason)


@pytest.mark.parametrize("row", TABLE)
def test_the_built_in_plugins_give_the_row(row: Row) -> None:
    advice = first_advice(of_row(row))
    assert advice is not None
    assert (advice.route, advice.reason) == (row.route, row.reason)


def test_plugins_and_kernel_agree_on_every_snapshot() -> None:
    assert [first_advice(asked) for asked in every_request()] == [standard(asked) for asked in every_request()]


def test_a_socket_here_makes_a_socket_elsewhere_irrelevant() -> None:
    both = request(here=True, elsewhere=True, direct=False, paused=False, hold=False, now=False, between=False)
    assert standard(both).route is Route.LOCAL


def test_no_snapshot_is_without_an_answer_and_no_answer_contradicts_it() -> None:
    for asked in every_request():
        assert any(applies(asked) for applies in PREDICATES.values())
        assert agrees(standard(asked), asked)


def test_without_a_socket_local_is_a_contradiction() -> None:
    asked = of_row(NOBODY)
    assert not agrees(RouteAdvice(route=Route.LOCAL, reason="wishful"), asked)
    assert not agrees(RouteAdvice(route=Route.FORWARD, reason="wishful"), asked)
    assert not agrees(RouteAdvice(route=Route.DIRECT, reason="wishful"), asked)


def test_hold_contradicts_a_caller_who_does_not_wait() -> None:
    asked = of_row(NOBODY_NOW)
    assert not agrees(RouteAdvice(route=Route.HOLD, reason="later"), asked)


def test_refusing_is_always_allowed() -> None:
    assert all(agrees(RouteAdvice(route=Route.REFUSE, reason="maintenance"), asked) for asked in every_request())


@pytest.mark.parametrize("nonsense", [None, "local", 7, Route.LOCAL])
def test_what_is_no_advice_agrees_with_nothing(nonsense: object) -> None:
    assert not agrees(nonsense, of_row(TABLE[0]))
