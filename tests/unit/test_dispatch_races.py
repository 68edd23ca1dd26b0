"""Tasks of one hub that meet between two awaits: the order is the test's, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import anyio
import msgspec
import pytest

from kernel import lanes as lanes_of
from kernel import wire
from kernel.broker import Broker, Epoch, Session, SessionId
from kernel.clock import SYSTEM, Instant
from kernel.config import Settings
from kernel.dispatch import Delivery
from kernel.drain import Drain
from kernel.errors import StorageUnavailable
from kernel.handover import Handover
from kernel.intent import Intent, IntentId
from kernel.lanes import Lanes, Work
from kernel.link import Closed, Link
from kernel.links import Links
from kernel.node import NodeId
from kernel.observe import Observer
from kernel.storage import Changed, ClaimRequest, Claims, Released, SessionClaim, SessionClaimed
from tests.unit.test_dispatch_lanes import Silent, a_link, a_work, until

pytestmark = pytest.mark.anyio
NOTHING: Any = None


# -- a turn that comes at once ---------------------------------------------------------------------------------


class Places:
    """Deliveries as the dispatcher makes them: under the work's patience until it has its place, then for long."""

    def __init__(self) -> None:
        self.place = anyio.Event()
        self.answer = anyio.Event()
        self.told: dict[str, str] = {}

    async def deliver(self, work: Work) -> None:
        name = work.intent.id
        self.told[name] = "sent" if await self._sent(work) else "not sent"

    async def _sent(self, work: Work) -> bool:
        with work.patience(work.until - SYSTEM.monotonic()):
            await self.place.wait()
            if work.set_out():
                await self.answer.wait()
                return True
        return False


async def test_a_turn_that_comes_before_its_wait_began_waits_once() -> None:
    """The end before it and its own entry came in one step of the loop: its turn is there before it stood."""
    places, link = Places(), a_link()
    async with anyio.create_task_group() as tasks:
        lanes = Lanes(tasks, SYSTEM, deliver=places.deliver, put_aside=places.deliver)
        first, second = a_work(link, "1"), a_work(link, "2", seconds=0.3)
        places.place.set()
        lanes.enter(first)
        await until(lambda: first.out)
        places.place = anyio.Event()  # the window is full
        places.answer.set()
        lanes.enter(second)
        await until(first.settled.is_set)
        places.answer = anyio.Event()
        await anyio.sleep(0.05)
        places.place.set()
        await until(lambda: second.out)
        await anyio.sleep(0.4)
        assert places.told == {"1": "sent"}, "it is out, and its deadline ends no more"
        places.answer.set()
    assert places.told == {"1": "sent", "2": "sent"}


async def test_what_is_given_up_before_its_place_is_not_sent_whenever_its_turn_came() -> None:
    places, link = Places(), a_link()
    async with anyio.create_task_group() as tasks:
        lanes = Lanes(tasks, SYSTEM, deliver=places.deliver, put_aside=places.deliver)
        first, second = a_work(link, "1"), a_work(link, "2")
        places.place.set()
        lanes.enter(first)
        await until(lambda: first.out)
        places.place = anyio.Event()
        places.answer.set()
        lanes.enter(second)
        await until(first.settled.is_set)
        second.end_wait()
        await until(second.settled.is_set)
    assert places.told == {"1": "sent", "2": "not sent"}


# -- a wish to stop that is quicker than what it means ----------------------------------------------------------


async def test_what_was_to_be_stopped_before_its_claim_was_answered_is_not_sent() -> None:
    places, link = Places(), a_link()
    places.place.set()
    places.answer.set()
    async with anyio.create_task_group() as tasks:
        delivery = Delivery(attempts=NOTHING, ends=NOTHING, notices=NOTHING, clock=SYSTEM, tasks=tasks)
        delivery.lanes = Lanes(tasks, SYSTEM, deliver=places.deliver, put_aside=places.deliver)
        delivery.stop_here("1")
        for name in ("1", "2"):
            delivery.lanes.enter(a_work(link, name, agent=name))
        await until(lambda: len(places.told) == 2)
        assert places.told == {"1": "not sent", "2": "sent"}
        delivery.lanes.enter(a_work(link, "1"))
        await until(lambda: places.told["1"] == "sent")


async def test_a_wish_to_stop_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_of, "REMEMBERED", 0.05)
    places, link = Places(), a_link()
    places.place.set()
    places.answer.set()
    async with anyio.create_task_group() as tasks:
        lanes = Lanes(tasks, SYSTEM, deliver=places.deliver, put_aside=places.deliver)
        lanes.refuse("1")
        await anyio.sleep(0.1)
        lanes.refuse("2")
        lanes.enter(a_work(link, "1"))
        await until(lambda: places.told == {"1": "sent"})
        assert list(lanes._unwanted) == ["2"]


async def test_what_may_have_been_sent_before_is_sent_again_whoever_asked_to_stop_it() -> None:
    """Else nobody would ever know what became of it."""
    places, link = Places(), a_link()
    places.place.set()
    places.answer.set()
    async with anyio.create_task_group() as tasks:
        lanes = Lanes(tasks, SYSTEM, deliver=places.deliver, put_aside=places.deliver)
        lanes.refuse("1")
        again = msgspec.structs.replace(a_work(link, "1").intent, attempts=2)
        lanes.enter(Work(intent=again, link=link, until=SYSTEM.monotonic() + 60.0))
        await until(lambda: places.told == {"1": "sent"})


@pytest.mark.parametrize(("attempts", "told"), [(1, []), (2, ["1"])])
async def test_who_has_it_by_now_is_told_to_stop_though_a_lost_attempt_is_still_here(
    attempts: int, told: list[str]
) -> None:
    places, link, stopped = Places(), a_link(), list[str]()

    class Heard:
        def stop(self, intent: Intent) -> None:
            stopped.append(intent.id)

    async with anyio.create_task_group() as tasks:
        heard = cast("Any", Heard())
        delivery = Delivery(attempts=NOTHING, ends=NOTHING, notices=heard, clock=SYSTEM, tasks=tasks)
        delivery.lanes = Lanes(tasks, SYSTEM, deliver=places.deliver, put_aside=places.deliver)
        work = a_work(link, "1")
        delivery.lanes.enter(work)
        await anyio.wait_all_tasks_blocked()
        delivery.stop(msgspec.structs.replace(work.intent, attempts=attempts))
    assert (stopped, places.told) == (told, {"1": "not sent"})


# -- claims that are answered late -------------------------------------------------------------------------------


class Dialled:
    """A broker's socket: it says `connect`, and is gone once it was closed."""

    def __init__(self) -> None:
        self.closed: tuple[int, str] | None = None
        self._frames = [wire.encode(wire.Connect(broker_id="b"))]
        self._gone = anyio.Event()

    async def receive(self) -> str:
        if self._frames:
            return self._frames.pop()
        await self._gone.wait()
        raise Closed(self.closed[0] if self.closed else 1006)

    async def send(self, text: str) -> None: ...

    async def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or (code, reason)
        self._gone.set()

    def abort(self) -> None:
        self._gone.set()

    def heard_at(self) -> float:
        return SYSTEM.monotonic()


class Sessions:
    """Each claim raises the epoch at once, and is answered when the test says so."""

    def __init__(self) -> None:
        self.epoch = 0
        self.answers: list[anyio.Event] = []
        self.released: list[int] = []
        self.renewals = 0.0

    async def claim_session(self, claim: SessionClaim) -> SessionClaimed:
        self.epoch += 1
        session = Session(
            broker_id=claim.broker_id, node_id=claim.node_id, session_id=claim.session_id, epoch=Epoch(self.epoch)
        )
        answer = anyio.Event()
        self.answers.append(answer)
        await answer.wait()
        broker = Broker(id=claim.broker_id, name="b", slug="b", capabilities=["dedupe"])
        return SessionClaimed(session=session, broker=broker, former=None, redriven=Changed())

    async def release_session(self, session: Session, code: int, sent: Sequence[IntentId]) -> Released:
        self.released.append(session.epoch)
        return Released(cleared=session.epoch == self.epoch)

    async def renew(self, sessions: Sequence[Session]) -> tuple[SessionId, ...]:
        await anyio.sleep(self.renewals)
        return ()


class Deaf:
    """Hears of links and does nothing."""

    def arrived(self, link: Link, claimed: SessionClaimed) -> None: ...

    def left(self, link: Link, released: Released) -> None: ...

    async def events(self, link: Link, event: wire.Event) -> None: ...

    def accepted(self, intent_id: str) -> None: ...


def some_links(storage: Sessions) -> Links:
    links = Links(
        storage=storage,
        node_id=NodeId("n"),
        clock=SYSTEM,
        settings=Settings().channel,
        window=2,
        tells_conflict=lambda _: None,
    )
    links.listener = Deaf()
    return links


async def test_of_two_sockets_the_one_of_the_higher_epoch_stays_whichever_claim_is_answered_first() -> None:
    storage = Sessions()
    links, older, newer = some_links(storage), Dialled(), Dialled()
    async with anyio.create_task_group() as tasks:
        for socket in (older, newer):
            tasks.start_soon(links.serve, socket, "b", bytes(32))
            await until(lambda: len(storage.answers) == storage.epoch > 0)
            await anyio.wait_all_tasks_blocked()
        for answer in reversed(storage.answers):
            answer.set()
            await anyio.wait_all_tasks_blocked()
        await until(lambda: older.closed is not None)
        assert older.closed == (wire.Close.REPLACED, "replaced")
        assert newer.closed is None
        link = links.of("b")
        assert link
        assert (link.session.epoch, link.open) == (2, True)
        link.hang_up(wire.Close.ORDERLY, "over")
    assert storage.released == [1, 2]


async def test_a_socket_whose_claim_was_under_way_when_the_hand_over_began_does_not_stay() -> None:
    """Whoever hands over may have looked for the last time: it would stay until the hub is stopped."""
    storage = Sessions()
    links, socket = some_links(storage), Dialled()
    codes: list[int | None] = []

    async def serve() -> None:
        codes.append(await links.serve(socket, "b", bytes(32)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await until(lambda: len(storage.answers) == 1)
            links.draining = True
            storage.answers[0].set()
    assert (codes, socket.closed) == ([wire.Close.DRAINING], (wire.Close.DRAINING, "draining"))
    assert (storage.released, len(links)) == ([1], 0)


async def test_a_session_is_as_fresh_as_the_question_that_renewed_it() -> None:
    """A process that stood still while the answer lay there is told something old."""
    storage = Sessions()
    links, socket = some_links(storage), Dialled()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(links.serve, socket, "b", bytes(32))
        await until(lambda: len(storage.answers) == 1)
        storage.answers[0].set()
        await until(lambda: links.of("b") is not None)
        link = links.of("b")
        assert link
        storage.renewals = 0.2
        asked = SYSTEM.monotonic()
        await links.renew_once()
        assert asked <= link.renewed_at < asked + 0.1
        link.hang_up(wire.Close.ORDERLY, "over")


async def test_past_its_deadline_nothing_is_sent_however_long_its_claim_was_under_way() -> None:
    class Late:
        async def claim(self, request: ClaimRequest) -> Claims:
            """What the database said at once is read after a while."""
            now = SYSTEM.now()
            await anyio.sleep(0.3)
            due = msgspec.structs.replace(a_work(link, "1").intent, deadline_at=Instant(now + 200_000))
            return Claims(intents=(due,) if not found else (), now=now)

    class Sure:
        def lost(self, link: Link, intent: Intent) -> bool:
            return False

        def unsure(self, intent: Intent) -> bool:
            return False

    link, found = a_link(), list[Work]()

    async def deliver(work: Work) -> None:
        found.append(work)

    async with anyio.create_task_group() as tasks:
        drain = Drain(
            storage=cast("Any", Late()),
            links=some_links(Sessions()),
            lanes=Lanes(tasks, SYSTEM, deliver=deliver, put_aside=deliver),
            recovery=cast("Any", Sure()),
            observer=Observer(Silent(), Silent(), Silent()),
            clock=SYSTEM,
            tasks=tasks,
            lazy=lambda _: False,
        )
        drain.start(link)
        await until(lambda: bool(found))
        assert found[0].until <= SYSTEM.monotonic()
        link.lose()


# -- a hub that stops --------------------------------------------------------------------------------------------


class Slowly:
    """Writes work down, the longer the earlier it was asked."""

    def __init__(self, *away: str) -> None:
        self.away = away
        self.asked: list[str] = []
        self.written: list[str] = []

    async def write_down(self, work: Work) -> None:
        self.asked.append(work.intent.id)
        await anyio.sleep(0.2 / len(self.asked))
        if work.intent.id in self.away:
            raise StorageUnavailable
        self.written.append(work.intent.id)


class Standing:
    """The lanes of two agents, with LOCAL work that nobody wrote down."""

    def __init__(self) -> None:
        link = a_link()
        self.works = [a_work(link, f"{agent}{n}", agent=agent) for n in range(3) for agent in ("a", "b")]

    def unrecorded(self) -> list[Work]:
        return self.works


def handing_over(ends: Slowly) -> Handover:
    return Handover(
        storage=NOTHING,
        links=NOTHING,
        dispatcher=NOTHING,
        lanes=cast("Any", Standing()),
        ends=cast("Any", ends),
        waiters=NOTHING,
        readiness=NOTHING,
        pulse=NOTHING,
        clock=SYSTEM,
    )


async def test_what_waits_in_one_lane_gets_its_rows_in_the_order_of_the_lane() -> None:
    """The next hub claims by the order of the rows: what stands behind must not overtake what is with the broker."""
    ends = Slowly()
    await handing_over(ends)._write_down_all()
    assert [name for name in ends.written if name[0] == "a"] == ["a0", "a1", "a2"]
    assert [name for name in ends.written if name[0] == "b"] == ["b0", "b1", "b2"]
    assert ends.asked[:2] == ["a0", "b0"], "lanes do not wait for each other"


async def test_a_database_that_is_away_is_asked_once_for_each_lane() -> None:
    ends = Slowly("a0", "b1")
    await handing_over(ends)._write_down_all()
    assert sorted(ends.asked) == ["a0", "b0", "b1"]
    assert ends.written == ["b0"]
