"""What goes wrong, one function a fault: it breaks something, waits, and puts it right again."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

import anyio

from tests.chaos.world import World
from tests.harness.hubprocess import HubProcess
from tests.harness.pooler import NAME as POOLER

Fault = Callable[[World], Awaitable[None]]
LONGER_THAN_EVERY_WINDOW = 6.0
"""Seconds: past `lost_after`, `dead_after` and `stale_after` of the hubs under test."""

NOISE = "do $$ begin loop perform pg_notify('noise', repeat('x', 200)); commit; end loop; end $$"

# -- hubs


async def owner_killed(world: World) -> None:
    await _killed(world, await world.owner(world.any_broker()))


async def entry_killed(world: World) -> None:
    """A hub that answers calls and holds, if it can be found, no broker."""
    await _killed(world, await _entry(world))


async def owner_stopped(world: World) -> None:
    await _stopped(await world.owner(world.any_broker()))


async def entry_stopped(world: World) -> None:
    await _stopped(await _entry(world))


async def entry_frozen(world: World) -> None:
    """Its callers wait, hang up and ask others; what it had accepted goes on without it."""
    await _frozen(await _entry(world), LONGER_THAN_EVERY_WINDOW)


async def owner_frozen(world: World) -> None:
    """It wakes as a zombie: its sockets are others' by then, and what it still sends is refused."""
    await _frozen(await world.owner(world.any_broker()), LONGER_THAN_EVERY_WINDOW)


async def owner_stumbles(world: World) -> None:
    await _frozen(await world.owner(world.any_broker()), world.chance.uniform(0.2, 1.5))


async def all_killed(world: World) -> None:
    for hub in world.cluster.alive:
        hub.kill()
    await world.restart()


async def _entry(world: World) -> HubProcess:
    owners = [await world.owner(broker) for broker in world.brokers]
    return world.chance.choice(world.cluster.others(*owners) or world.cluster.alive)


async def _stopped(hub: HubProcess) -> None:
    assert await hub.terminate() == 0, hub.log[-2000:]
    await hub.restart()


async def _frozen(hub: HubProcess, seconds: float) -> None:
    hub.freeze()
    await anyio.sleep(seconds)
    hub.thaw()


async def _killed(world: World, hub: HubProcess) -> None:
    hub.kill()
    await anyio.sleep(world.chance.uniform(0, 1.0))
    await hub.restart()


# -- brokers


async def broker_killed(world: World) -> None:
    broker = world.any_broker()
    broker.kill()
    await broker.again()


async def broker_stopped(world: World) -> None:
    broker = world.any_broker()
    await broker.leave()
    await broker.again()


async def broker_frozen(world: World) -> None:
    broker = world.any_broker()
    broker.freeze()
    await anyio.sleep(world.chance.choice((0.5, LONGER_THAN_EVERY_WINDOW)))
    broker.thaw()


async def socket_cut(world: World) -> None:
    world.chance.choice(world.doors).cut()


async def broker_flaps(world: World) -> None:
    await world.any_broker().flap(world.doors, world.chance)


# -- the network


async def door_stalled(world: World) -> None:
    """A black hole between brokers and the hub that holds one."""
    door = world.door_of(await world.owner(world.any_broker()))
    door.stall()
    await anyio.sleep(LONGER_THAN_EVERY_WINDOW)
    door.heal()


async def door_half_open(world: World) -> None:
    door = world.door_of(await world.owner(world.any_broker()))
    door.half_open(world.chance.choice(("client", "server")))
    await anyio.sleep(LONGER_THAN_EVERY_WINDOW)
    door.cut()


async def answers_lost(world: World) -> None:
    """What brokers answer is on its way when the connection breaks; what they are asked had arrived."""
    for door in world.doors:
        door.stall("up", new=False)
    await anyio.sleep(2)
    for door in world.doors:
        door.cut()


async def doors_slow(world: World) -> None:
    for door in world.doors:
        door.delay(0.2)
    await anyio.sleep(2)
    for door in world.doors:
        door.heal()


async def way_stalled(world: World) -> None:
    """A black hole between the database and the hub that holds a broker."""
    way = world.way_of(await world.owner(world.any_broker()))
    way.stall()
    await anyio.sleep(LONGER_THAN_EVERY_WINDOW)
    way.heal()


async def way_cut(world: World) -> None:
    way = world.chance.choice(world.ways)
    way.refuse()
    way.cut()
    await anyio.sleep(world.chance.uniform(0, 3))
    way.heal()


async def way_half_open(world: World) -> None:
    way = world.way_of(await world.owner(world.any_broker()))
    way.half_open("server")
    await anyio.sleep(LONGER_THAN_EVERY_WINDOW)
    way.cut()


async def ways_slow(world: World) -> None:
    for way in world.ways:
        way.delay(0.05)
    await anyio.sleep(2)
    for way in world.ways:
        way.heal()


# -- the database


async def listener_terminated(world: World) -> None:
    world.server.terminate("pointsman-listen:%")


async def claimer_terminated(world: World) -> None:
    world.server.terminate(_behind_pooler(world) or "pointsman-owner:%")


async def pool_terminated(world: World) -> None:
    world.server.terminate(_behind_pooler(world) or "pointsman-pool:%")


async def connections_terminated(world: World) -> None:
    for name in {"pointsman-%", _behind_pooler(world) or "pointsman-%"}:
        world.server.terminate(name)


async def listener_pooled(world: World) -> None:
    """For a while LISTEN leads to the pooler: it is accepted there, and nothing is ever heard."""
    for way in world.ways:
        if way.pooler:
            way.lead_listener(way.pooler.port)
    await anyio.sleep(4)
    for way in world.ways:
        if way.pooler:
            way.lead_listener(world.server.port)


def _behind_pooler(world: World) -> str:
    """The pooler's sessions serve everybody in turn: no connection is the claimer's alone."""
    return POOLER if any(way.pooler for way in world.ways) else ""


async def database_restarted(world: World) -> None:
    world.server.restart()


async def database_killed(world: World) -> None:
    world.crashed = True
    world.server.kill()
    await anyio.sleep(world.chance.uniform(0, 2))
    world.server.start()


async def database_frozen(world: World) -> None:
    world.server.freeze()
    await anyio.sleep(world.chance.choice((1.0, LONGER_THAN_EVERY_WINDOW)))
    world.server.thaw()


async def neighbours_notify(world: World) -> None:
    """Sixteen of them, in another database: NOTIFY takes one lock for the whole server."""
    with world.server.neighbours(16, NOISE):
        await anyio.sleep(4)


HUBS: Sequence[Fault] = (
    owner_killed,
    entry_killed,
    owner_stopped,
    entry_stopped,
    owner_frozen,
    entry_frozen,
    owner_stumbles,
    all_killed,
)
BROKERS: Sequence[Fault] = (broker_killed, broker_stopped, broker_frozen, socket_cut, broker_flaps)
NETWORK: Sequence[Fault] = (
    door_stalled,
    door_half_open,
    answers_lost,
    doors_slow,
    way_stalled,
    way_cut,
    way_half_open,
    ways_slow,
)
DATABASE: Sequence[Fault] = (
    listener_terminated,
    claimer_terminated,
    pool_terminated,
    connections_terminated,
    database_restarted,
    database_killed,
    database_frozen,
    neighbours_notify,
)
ALL: Sequence[Fault] = (*HUBS, *BROKERS, *NETWORK, *DATABASE)
POOLED: Sequence[Fault] = (*ALL, listener_pooled)


def plan(seed: int, faults: Sequence[Fault], rounds: int) -> list[Fault]:
    """Each fault as often as the rounds allow, in an order that the seed decides."""
    chance = random.Random(seed)
    found: list[Fault] = []
    while len(found) < rounds:
        found += chance.sample(faults, len(faults))
    return found[:rounds]


async def carry_out(world: World, planned: Sequence[Fault]) -> None:
    for fault in planned:
        await anyio.sleep(world.chance.uniform(0.2, 0.8))
        world.record("fault", fault=fault.__name__)
        await fault(world)
        world.record("mended", fault=fault.__name__)
