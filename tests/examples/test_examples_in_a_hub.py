"""The examples, installed from their folders, give their verdicts in a hub that serves real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.examples.conftest import ExtendedHub, plugin_row
from tests.harness.brokerprocess import BrokerProcess
from tests.harness.hubclient import Answered, HubClient, Json

pytestmark = pytest.mark.anyio

STICKY = "  - use: sticky_region\n    config: {label: region}\n"
MAINTENANCE = "  - use: maintenance_window\n    config: {brokers: [being-rebuilt], retry_after: 1m}\n"
EU, US = {"region": "eu"}, {"region": "us"}


@pytest.fixture(scope="module")
async def sticky(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> AsyncIterator[HubClient]:
    async with ExtendedHub(tmp_path_factory.mktemp("sticky"), STICKY, path=installed) as hub:
        yield hub.api


@pytest.fixture(scope="module")
async def maintained(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> AsyncIterator[HubClient]:
    async with ExtendedHub(tmp_path_factory.mktemp("maintained"), MAINTENANCE, path=installed) as hub:
        yield hub.api


@asynccontextmanager
async def connected(
    hub: HubClient, directory: Path, *, name: str | None = None, labels: dict[str, str] | None = None
) -> AsyncIterator[BrokerProcess]:
    identity = await hub.register_broker(name, labels=labels or {})
    async with BrokerProcess(directory, urls=[hub.url], **identity) as broker:
        await hub.broker_is(broker.broker_id, "online")
        yield broker


def refused(answer: Answered) -> Json:
    """The error of a call that a strategy refused."""
    error: Json = answer.expect(503).json["error"]
    assert error["code"] == "runtime_broker_unavailable"
    return error


# -- sticky_region ----------------------------------------------------------------------------------------------


async def test_an_installed_example_is_listed_with_where_it_comes_from(sticky: HubClient) -> None:
    row = await plugin_row(sticky, "sticky_region")
    assert row["state"] == "on"
    assert row["origin"] == "pointsman-sticky-region 1.0.0"
    assert {hook["hook"] for hook in row["hooks"]} == {"rank_route", "rank_brokers"}


async def test_a_new_agent_goes_to_a_broker_of_its_region(sticky: HubClient, tmp_path: Path) -> None:
    project = await sticky.create_project()
    async with (
        connected(sticky, tmp_path / "us", labels=US),
        connected(sticky, tmp_path / "eu", labels=EU) as eu,
    ):
        made = (await sticky.post_agent(project, None, labels=EU)).expect(201)
        assert made.json["agent"]["runtimeBrokerId"] == eu.broker_id
        row = await sticky.dispatch(made.dispatch)
        assert (row["state"], row["route"], row["brokerId"]) == ("done", "local", eu.broker_id)


async def test_an_agent_that_is_away_from_home_is_not_started_but_stopped(sticky: HubClient, tmp_path: Path) -> None:
    project = await sticky.create_project()
    async with connected(sticky, tmp_path, labels=US) as us:
        agent = await sticky.create_agent(project, us.broker_id)
        (await sticky.ask("PATCH", f"/agents/{agent['id']}", {"labels": EU})).expect(200)
        told = refused(await sticky.do("restart", agent["id"]))
        assert told["details"]["reason"].startswith("region eu is not served by broker ")
        assert told["details"]["reason"] in told["message"]
        assert us.effects(op="restart") == []
        (await sticky.do("stop", agent["id"])).expect(200)
        assert (await sticky.agent(agent["id"]))["phase"] == "stopped"


# -- maintenance_window -----------------------------------------------------------------------------------------


async def test_a_broker_on_the_list_gets_no_calls(maintained: HubClient, tmp_path: Path) -> None:
    project = await maintained.create_project()
    async with connected(maintained, tmp_path, name="Being rebuilt") as closed:
        answer = await maintained.post_agent(project, closed.broker_id)
        assert refused(answer)["details"]["reason"] == "maintenance"
        assert answer.headers["retry-after"] == "60"
        assert closed.effects() == []


async def test_a_label_closes_and_opens_a_broker_without_a_restart(maintained: HubClient, tmp_path: Path) -> None:
    project = await maintained.create_project()
    async with connected(maintained, tmp_path) as broker:
        agent = await maintained.create_agent(project, broker.broker_id)
        await label(maintained, broker, "on")
        assert refused(await maintained.message(agent["id"], "hello"))["details"]["reason"] == "maintenance"
        (await maintained.do("stop", agent["id"])).expect(200)
        await label(maintained, broker, "off")
        started = (await maintained.do("start", agent["id"])).expect(200)
        told = await maintained.explain(started.dispatch)
        assert told["transitions"][-1]["to"] == "done"


async def label(hub: HubClient, broker: BrokerProcess, maintenance: str) -> None:
    edit = {"labels": {"maintenance": maintenance}}
    (await hub.ask("PATCH", f"/runtime-brokers/{broker.broker_id}", edit)).expect(200)
