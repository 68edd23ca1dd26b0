"""What a hub does beside its calls: it beats and sweeps, whatever the database answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from kernel.arrivals import Arrivals
from kernel.clock import SYSTEM, Clock, Instant
from kernel.config import Settings
from kernel.errors import StorageUnavailable
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.node import Node, NodeId
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.pulse import Pulse
from kernel.signals import Signal, SignalKind
from kernel.storage import Changed, Released
from kernel.sweeps import BATCH, Judgement, Sweeps
from kernel.waiters import Waiters
from tests.unit.test_signals_senders import Told

pytestmark = pytest.mark.anyio
NODE = Node(id=NodeId("n"), started_at=Instant(0), beat_at=Instant(0), version="t")


class Silent:
    def tell(self, *_: object) -> None: ...


class Forgets:
    """A database that lost the node's row, and is away when the node wants it back the first time."""

    def __init__(self) -> None:
        self.joined = 0
        self.known = True

    async def join_node(self, node: Node) -> Changed:
        self.joined += 1
        if self.joined == 2:
            raise StorageUnavailable
        self.known = True
        return Changed()

    async def beat(self, node_id: NodeId, draining: bool) -> Node | None:
        return NODE if self.known else None


class Overdue:
    """A database with more overdue intents than one batch takes."""

    def __init__(self, count: int) -> None:
        self.left = count

    async def join_node(self, node: Node) -> Changed:
        return Changed()

    async def redrive(self, node_id: NodeId, limit: int) -> Changed:
        return Changed()

    async def expire_due(self, node_id: NodeId, limit: int) -> Changed:
        taken = min(limit, self.left)
        self.left -= taken
        return Changed(intents=tuple(_expired(n) for n in range(taken)))


def _expired(n: int) -> Intent:
    return Intent(
        id=IntentId(str(n)),
        op=Op.STOP,
        lane=Lane.CONTROL,
        state=State.EXPIRED,
        broker_id="b",
        agent_id="a",  # type: ignore[arg-type]
        agent_slug="a",
        project_id="p",
        deadline_at=Instant(0),
        route="hold",
        principal="me",
        request_id="r",
        node_id="n",
        created_at=Instant(0),
    )


async def test_a_node_that_cannot_join_again_tries_at_its_next_beat() -> None:
    storage: Any = Forgets()
    pulse = Pulse(storage, NODE, Clock(), every=0.01, lost_after=60, grace=0)
    await pulse.start()
    storage.known = False
    forgotten = 0

    async def forget() -> None:
        nonlocal forgotten
        forgotten += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pulse.run, forget)
        with anyio.fail_after(30):
            while storage.joined < 3:
                await anyio.sleep(0.01)
            while not pulse.steady:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert forgotten == 2


class Hand:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def monotonic(self) -> float:
        return self.at

    def follow(self, *_: object) -> None: ...


def beating(hand: Hand, breaks: list[int]) -> Pulse:
    storage, clock = cast("Any", Forgets()), cast("Any", hand)
    every = {"every": 2.0, "lost_after": 6.0, "grace": 12.0}
    return Pulse(storage, NODE, clock, **every, breaks=lambda: len(breaks))


def judges(pulse: Pulse) -> bool:
    return pulse.may_judge


async def until(pulse: Pulse, hand: Hand, moment: float) -> None:
    """A beat every two seconds until then."""
    while hand.at < moment:
        hand.at = min(hand.at + 2.0, moment)
        await pulse._try_beat(nothing)


async def test_after_a_broken_connection_nobody_is_judged_for_a_while() -> None:
    hand, breaks = Hand(), list[int]()
    pulse = beating(hand, breaks)
    await pulse.start()
    assert judges(pulse)
    breaks.append(1)
    assert not pulse.calm
    await until(pulse, hand, hand.at + 11.9)
    assert not judges(pulse)
    await until(pulse, hand, hand.at + 0.2)
    assert judges(pulse)


@pytest.mark.parametrize(("late", "may"), [(4.4, True), (4.6, False)])
async def test_after_a_beat_that_came_late_nobody_is_judged_for_a_while(late: float, may: bool) -> None:
    hand = Hand()
    pulse = beating(hand, [])
    await pulse.start()
    hand.at += late
    await pulse._try_beat(nothing)
    assert pulse.may_judge == may
    await until(pulse, hand, hand.at + 12.1)
    assert pulse.may_judge


async def test_while_its_own_beat_is_late_a_node_judges_nobody() -> None:
    """The database stands still: the first who is heard afterwards must not find the others silent."""
    hand = Hand()
    pulse = beating(hand, [])
    await pulse.start()
    hand.at += 3.1
    assert (pulse.steady, pulse.calm, pulse.may_judge) == (True, True, False)


async def nothing() -> None:
    """This node holds no session."""


async def test_a_sweep_ends_everything_that_is_overdue() -> None:
    storage: Any = Overdue(2 * BATCH + 3)
    pulse = Pulse(storage, NODE, SYSTEM, every=1, lost_after=60, grace=0)
    await pulse.start()
    signals, observer = Told(SYSTEM), Observer(Silent(), Silent(), Silent())
    sweeps = Sweeps(
        storage=storage,
        observer=observer,
        waiters=Waiters(storage, SYSTEM, ()),
        notices=Notices(signals=signals, observer=observer, node_id=NodeId("sweeps"), clock=SYSTEM),
        pulse=pulse,
        clock=SYSTEM,
        every=Settings().sweep,
        spans=Judgement(lost_after=6, stale_after=15, reconnect_grace=5, retention=60),
        renew=nothing,
    )
    await sweeps.stuck()
    assert storage.left == 0
    accepted = [tuple(str(n) for n in range(count)) for count in (BATCH, BATCH, 3)]
    ended = [(NodeId("n"), Signal(kind=SignalKind.ENDED, ids=ids)) for ids in accepted]
    assert [one for one in signals.told if one[1].kind is SignalKind.ENDED] == ended, "callers wait on its hub"
    assert signals.told.count((None, Signal(kind=SignalKind.WORK, broker_id="b"))) == 3, "one for a broker and round"


async def test_hub_whose_caller_waits_is_told_of_what_a_session_took_down_with_it() -> None:
    signals, observer, woken = Told(SYSTEM), Observer(Silent(), Silent(), Silent()), list[str]()
    unused: Any = None
    arrivals = Arrivals(
        lanes=unused,
        drain=cast("Any", SimpleNamespace(wake=woken.append)),
        reports=unused,
        notices=Notices(signals=signals, observer=observer, node_id=NodeId("here"), clock=SYSTEM),
        observer=observer,
        signals=signals,
        waiters=Waiters(unused, SYSTEM, ()),
    )
    link = cast("Any", SimpleNamespace(session=SimpleNamespace(broker_id="b")))
    arrivals.left(link, Released(cleared=True, changed=Changed(intents=(_expired(1), _expired(2)))))
    assert signals.told == [(NodeId("n"), Signal(kind=SignalKind.ENDED, ids=("1", "2")))]
    assert woken == ["b"]
