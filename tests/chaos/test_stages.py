"""A call through another hub, and each of those who carry it struck at each of its stages (P1, P2, P4, P6)."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from kernel.testing.postgres import Server
from tests.chaos.brokers import Scripted
from tests.chaos.faults import LONGER_THAN_EVERY_WINDOW
from tests.chaos.world import World, world
from tests.harness.brokerprocess import CommandFailed
from tests.harness.hubprocess import HubProcess

pytestmark = pytest.mark.anyio
STAGES = ("accepted", "sent", "in effect", "answered")
"""Recorded and not claimed; at the broker; with its effect; with its answer and no end in the database."""
STRUCK = ("owner", "entry", "broker")
BLOWS = ("killed", "frozen", "stopped")
PATIENCE = 60.0


@asynccontextmanager
async def at_stage(made: World, stage: str, owner: HubProcess, entry: HubProcess) -> AsyncIterator[str]:
    """A restart through `entry`, brought to its stage; afterwards nothing holds it back any more."""
    (broker,), (agent,) = made.scripted, made.agents
    gate = str(uuid.uuid4())
    await broker.rule(op="restart", gate=gate, effect="after" if stage == "sent" else "before", times=1)
    if stage == "accepted":
        owner.freeze()
    asked = {"prefer": "respond-async, deliver=hold", "idempotency_key": gate, "x_dispatch_deadline": "50"}
    dispatch = (await entry.api.do("restart", agent, **asked)).expect(202).dispatch
    if stage != "accepted":
        await broker.seen(what="request" if stage == "sent" else "effect", dispatch=dispatch)
    if stage == "answered":
        made.way_of(owner).stall()
        await broker.release(gate)
        await broker.seen(what="answer", socket=broker.events(what="request")[-1]["socket"])
    yield dispatch
    made.way_of(owner).heal()
    owner.thaw()
    with contextlib.suppress(CommandFailed, OSError):
        await broker.release(gate)


async def strike_hub(hub: HubProcess, blow: str) -> None:
    assert hub.child
    match blow:
        case "killed":
            hub.kill()
        case "frozen":
            hub.freeze()
            await anyio.sleep(LONGER_THAN_EVERY_WINDOW)
        case "stopped":
            hub.child.send(signal.SIGTERM)
            await anyio.sleep(0.5)


async def mend_hub(hub: HubProcess, blow: str) -> None:
    assert hub.child
    if blow == "stopped":
        assert await hub.child.ended() == 0, hub.log[-2000:]
    if blow == "frozen":
        hub.thaw()
    else:
        await hub.restart()


async def strike_broker(broker: Scripted, blow: str) -> None:
    match blow:
        case "killed":
            broker.kill()
        case "frozen":
            broker.freeze()
            await anyio.sleep(LONGER_THAN_EVERY_WINDOW)
            broker.thaw()  # or it could not be told to go on
        case "stopped":
            await broker.leave()


async def struck(made: World, stage: str, who: str, blow: str) -> None:
    (broker,) = made.scripted
    owner = await made.owner(broker)
    entry = made.chance.choice(made.cluster.others(owner))
    hub = {"owner": owner, "entry": entry}.get(who)
    made.record("struck", stage=stage, who=who, blow=blow)
    async with at_stage(made, stage, owner, entry) as dispatch:
        await (strike_hub(hub, blow) if hub else strike_broker(broker, blow))
    if hub:
        await mend_hub(hub, blow)
    elif blow != "frozen":
        await broker.restart()
    row = await made.cluster.others(owner, entry)[0].api.ended(dispatch, patience=PATIENCE)
    assert row["state"] == "done", row
    assert len(broker.effects(dispatch=dispatch)) == 1


@pytest.mark.parametrize("stage", STAGES)
async def test_each_stage_outlives_each_blow(tmp_path: Path, server: Server, stage: str) -> None:
    async with world(tmp_path, server, brokers=1, agents=1) as made:
        for who in STRUCK:
            for blow in BLOWS:
                await struck(made, stage, who, blow)
        await made.check()
