"""An agent's log, asked of its broker over this hub's socket."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from kernel import wire
from kernel.agent import Agent, AgentId, Phase
from kernel.api import logs
from kernel.api.logs import printed
from kernel.broker import Broker, BrokerId
from kernel.errors import BrokerOffline, BrokerTimeout, LinkLost, NoRuntimeBroker, RuntimeFailed, WrongNode
from kernel.project import Project
from kernel.storage import AgentView

pytestmark = pytest.mark.anyio


class Exchange:
    def __init__(self, response: wire.Response | None, *, lost: bool = False) -> None:
        self.response, self.lost = response, lost

    async def result(self) -> wire.Response:
        if self.lost:
            raise LinkLost
        if self.response is None:
            await anyio.sleep_forever()
        assert self.response is not None
        return self.response


class Link:
    """Answers one request with what it was given."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.calls: list[wire.Call] = []
        self.forgotten = 0

    def request(self, intent_id: str, call: wire.Call, headers: dict[str, str]) -> Exchange:
        self.calls.append(call)
        return self._exchange

    def forget(self, exchange: Exchange) -> None:
        self.forgotten += 1


def view(broker: Broker | None) -> AgentView:
    agent = Agent(id=AgentId("a"), slug="worker", name="worker", project_id="p", phase=Phase.RUNNING)
    project = Project(id="p", name="p", slug="p")
    return AgentView(agent=agent, project=project, broker=broker, waiting=frozenset())


def broker(*, online: bool = True) -> Broker:
    return Broker(id=BrokerId("b"), name="laptop", slug="laptop", online=online, connected_hub_id="node-2")


async def read(link: Link | None, held: Broker | None = None, *, tail: int | None = None) -> str:
    edge = SimpleNamespace(links=SimpleNamespace(of=lambda _: link))
    return await printed(cast("Any", edge), view(held), tail)


def answered(status: int, body: bytes) -> Link:
    return Link(Exchange(wire.Response(request_id="r", status_code=status, body=body)))


async def test_the_brokers_text_is_handed_on() -> None:
    link = answered(200, "Größe\n".encode())
    assert await read(link, broker(), tail=7) == "Größe\n"
    call = link.calls[0]
    assert (call.method, call.path, call.query) == ("GET", "/api/v1/agents/worker/logs", "projectId=p&groveId=p&tail=7")
    assert link.forgotten == 1


async def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert await read(answered(200, b"\xff\xfe"), broker()) == "\ufffd\ufffd"


async def test_the_brokers_error_is_told() -> None:
    with pytest.raises(RuntimeFailed) as told:
        await read(answered(404, b"no such agent"), broker())
    assert (told.value.code, told.value.status) == ("runtime_error", 502)
    assert "no such agent" in told.value.message


async def test_a_socket_elsewhere_is_named() -> None:
    with pytest.raises(WrongNode) as told:
        await read(None, broker())
    assert told.value.details == {"nodeId": "node-2"}


async def test_no_socket_anywhere_is_told() -> None:
    with pytest.raises(BrokerOffline):
        await read(None, broker(online=False))


async def test_no_broker_is_told() -> None:
    with pytest.raises(NoRuntimeBroker):
        await read(None, None)


async def test_a_socket_that_is_lost_meanwhile_is_told() -> None:
    link = Link(Exchange(None, lost=True))
    with pytest.raises(BrokerOffline):
        await read(link, broker())
    assert link.forgotten == 1


async def test_a_broker_that_stays_silent_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "DEADLINE", 0.05)
    link = Link(Exchange(None))
    with pytest.raises(BrokerTimeout):
        await read(link, broker())
    assert link.forgotten == 1
