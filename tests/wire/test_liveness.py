"""A peer that went silent is let go of within `dead_after`; one that merely works is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from tests.harness.brokerprocess import BrokerProcess
from tests.wire.rawsocket import raw_socket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.hubclient import HubClient
    from tests.harness.hubprocess import HubProcess
    from tests.harness.scenes import Scene

pytestmark = pytest.mark.anyio


async def test_a_frozen_broker_is_let_go_and_found_again(ours: Scene) -> None:
    agent = await ours.agent()
    assert ours.broker.child
    ours.broker.child.freeze()
    await ours.api.broker_is(ours.broker_id, "offline")
    held = (await ours.api.message(agent["id"], "hello")).expect(202)
    ours.broker.child.thaw()
    await ours.broker.seen(what="connected", times=2)
    assert (await ours.api.ended(held.dispatch))["state"] == "done"
    await ours.check()


async def test_what_a_frozen_broker_was_asked_is_done_once_after_it_thaws(ours: Scene) -> None:
    agent = await ours.agent()
    await ours.broker.rule(op="restart", gate="slow")
    answer = await ours.api.do("restart", agent["id"], prefer="respond-async")
    await ours.broker.seen(what="effect", op="restart")
    assert ours.broker.child
    ours.broker.child.freeze()
    await ours.api.broker_is(ours.broker_id, "offline")
    ours.broker.child.thaw()
    await ours.broker.seen(what="joined", dispatch=answer.dispatch)
    await ours.broker.release("slow")
    assert (await ours.api.ended(answer.dispatch))["state"] == "done"
    assert len(ours.broker.effects(op="restart")) == 1
    await ours.check()


async def test_a_socket_that_stops_reading_is_let_go(ours: Scene) -> None:
    """Neither its full buffer nor its silence holds up anybody else."""
    agent = await ours.agent()
    async with await ours.other_broker("healthy") as healthy:
        await healthy.seen(what="connected")
        other = await ours.api.create_agent(ours.project, healthy.broker_id)
        await ours.broker.tell("auto", on=False)
        await ours.broker.tell("pause")
        for n in range(40):
            (await ours.api.message(agent["id"], f"{n}" + "x" * 60_000)).expect(202)
        (await ours.api.do("stop", other["id"])).expect(200)
        await ours.api.broker_is(ours.broker_id, "offline")
        (await ours.api.do("start", other["id"])).expect(200)


async def test_a_broker_whose_pings_arrive_is_kept(hub: HubProcess, api: HubClient) -> None:
    """It answers no ping of the hub, as a stock broker at work, but goes on sending its own."""
    identity = await api.register_broker()
    async with raw_socket(hub.url, identity) as socket:
        await socket.greet()
        socket.ws.transport.pause_reading()
        for _ in range(7):
            await socket.ws.ping()
            await anyio.sleep(0.9)
        socket.ws.transport.resume_reading()
        await socket.still_serves()


async def test_a_broker_that_only_answers_pings_is_kept(ours: Scene) -> None:
    await anyio.sleep(6)
    assert len(ours.broker.events(what="connected")) == 1
    assert (await ours.api.broker(ours.broker_id))["status"] == "online"


async def test_an_orderly_close_is_offline_at_once(api: HubClient, hub: HubProcess, tmp_path: Path) -> None:
    identity = await api.register_broker()
    async with BrokerProcess(tmp_path / "b", urls=[hub.url], **identity) as broker:
        await broker.seen(what="connected")
        await broker.disconnect()
        await api.broker_is(identity["broker_id"], "offline", patience=5)
