"""`@route`: no responder is reached that does not say who may."""

from __future__ import annotations

from typing import Any

import pytest

from kernel.api.routes import Route, route, routes_of
from kernel.errors import Misconfigured


class Declared:
    @route(action="thing.list", access="user")
    async def on_get(self, req: Any, resp: Any) -> None: ...

    @route(action="thing.make", access=("user", "agent"))
    async def on_post(self, req: Any, resp: Any) -> None: ...

    @route(action="thing.stop", access="user")
    async def on_post_stop(self, req: Any, resp: Any, thing: str) -> None: ...


class Forgotten:
    @route(action="thing.list", access="user")
    async def on_get(self, req: Any, resp: Any) -> None: ...

    async def on_delete(self, req: Any, resp: Any) -> None: ...


class Open:
    async def on_websocket(self, req: Any, ws: Any) -> None: ...


def test_a_resource_tells_its_routes_by_method() -> None:
    assert routes_of(Declared(), None) == {
        "GET": Route(action="thing.list", access=("user",)),
        "POST": Route(action="thing.make", access=("user", "agent")),
    }


def test_a_suffix_chooses_among_responders() -> None:
    assert list(routes_of(Declared(), "stop")) == ["POST"]


@pytest.mark.parametrize(("resource", "name"), [(Forgotten(), "on_delete"), (Open(), "on_websocket")])
def test_a_responder_without_a_declaration_stops_the_start(resource: object, name: str) -> None:
    with pytest.raises(Misconfigured, match=name):
        routes_of(resource, None)


def test_an_action_names_the_kind_of_thing_that_it_is_done_to() -> None:
    assert Route(action="agent.start", access=("user",)).kind == "agent"
