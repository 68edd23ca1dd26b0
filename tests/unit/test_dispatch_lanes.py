"""Lanes and the drain, on a link that leads nowhere: turns, places, and what ends when a link does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from kernel.broker import Broker, BrokerId, Epoch, Session, SessionId
from kernel.clock import SYSTEM, Instant
from kernel.config import Settings
from kernel.drain import Drain
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.lanes import Lanes, Work
from kernel.link import Closed, Link
from kernel.links import Links
from kernel.node import NodeId
from kernel.observe import Observer
from kernel.storage import Claims

pytestmark = pytest.mark.anyio


class Nowhere:
    """A socket on which nothing comes."""

    async def receive(self) -> str | bytes:
        await anyio.sleep_forever()
        raise Closed(1006)

    async def send(self, text: str) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...

    def heard_at(self) -> float:
        return SYSTEM.monotonic()


class Silent:
    def tell(self, *_: object) -> None: ...


class NothingWaits:
    """A storage that has nothing to claim."""

    async def claim(self, request: Any) -> Claims:
        return Claims(now=SYSTEM.now())


def a_link() -> Link:
    broker = Broker(id=BrokerId("b"), name="b", slug="b", capabilities=["dedupe"])
    session = Session(broker_id=broker.id, node_id="n", session_id=SessionId("s"), epoch=Epoch(1))
    return Link(
        socket=Nowhere(),
        broker=broker,
        session=session,
        secret=bytes(32),
        settings=Settings().channel,
        window=2,
        clock=SYSTEM,
    )


def a_work(link: Link, name: str, agent: str = "a", *, seconds: float = 60.0) -> Work:
    intent = Intent(
        id=IntentId(name),
        op=Op.STOP,
        lane=Lane.CONTROL,
        state=State.IN_PROGRESS,
        broker_id="b",
        agent_id=agent,  # type: ignore[arg-type]
        agent_slug=agent,
        project_id="p",
        attempts=1,
        deadline_at=Instant(0),
        route="local",
        principal="me",
        request_id="r",
        node_id="n",
        created_at=Instant(0),
    )
    return Work(intent=intent, link=link, until=SYSTEM.monotonic() + seconds)


class Bench:
    """Lanes whose deliveries last until they are let go."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.log: list[str] = []
        self.let_go = anyio.Event()
        self.lanes = Lanes(tasks, SYSTEM, deliver=self.deliver, put_aside=self.put_aside)

    async def deliver(self, work: Work) -> None:
        self.log.append(f"sent {work.intent.id}")
        await self.let_go.wait()

    async def put_aside(self, work: Work) -> None:
        self.log.append(f"aside {work.intent.id}")
        await anyio.sleep(0)


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not true():
            await anyio.sleep(0.005)


class Agrees:
    """What a crash may have undone, of a database that never crashed."""

    async def agree(self, link: Link) -> None:
        link.doubted = False


def a_drain(tasks: TaskGroup, storage: Any, recovery: Any) -> Drain:
    links = Links(
        storage=storage,
        node_id=NodeId("n"),
        clock=SYSTEM,
        settings=Settings().channel,
        window=2,
        tells_conflict=lambda _: None,
    )
    return Drain(
        storage=storage,
        links=links,
        lanes=Bench(tasks).lanes,
        recovery=recovery,
        observer=Observer(Silent(), Silent(), Silent()),
        clock=SYSTEM,
        tasks=tasks,
        lazy=lambda _: False,
    )


async def test_a_link_that_is_gone_leaves_no_task_behind() -> None:
    link = a_link()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            a_drain(tasks, NothingWaits(), None).start(link)
            await anyio.sleep(0.05)
            link.lose()


class Unreadable:
    """A storage whose claim meets a row that it cannot read, until somebody has mended it."""

    def __init__(self) -> None:
        self.mended = False
        self.asked = 0

    async def claim(self, _: Any) -> Claims:
        self.asked += 1
        if not self.mended:
            raise ValueError("this is no state")
        return Claims(now=SYSTEM.now())


async def test_a_row_that_cannot_be_read_ends_no_hub(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kernel.drain.UNFORESEEN", 0.01)
    storage, link = Unreadable(), a_link()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            drain = a_drain(tasks, storage, Agrees())
            drain.start(link)
            await until(lambda: storage.asked > 3)
            storage.mended = True
            before = storage.asked
            await until(lambda: storage.asked > before)
            await anyio.sleep(0.05)
            assert storage.asked == before + 1, "it goes well, so nobody asks again"
            link.lose()
    assert [record.message for record in caplog.records] == ["nothing claimed for broker b"]


async def test_what_waits_in_a_lane_wants_no_place_yet() -> None:
    async with anyio.create_task_group() as tasks:
        bench, link = Bench(tasks), a_link()
        for name in ("1", "2", "3"):
            bench.lanes.enter(a_work(link, name))
        assert link.in_hand == 1
        bench.let_go.set()
        await until(lambda: not bench.lanes.works())
        assert bench.log == ["sent 1", "sent 2", "sent 3"]
        assert link.in_hand == 0


async def test_a_work_past_its_deadline_ends_where_it_waits_and_the_order_stays() -> None:
    async with anyio.create_task_group() as tasks:
        bench, link = Bench(tasks), a_link()
        works = [a_work(link, "1"), a_work(link, "2", seconds=0.05), a_work(link, "3")]
        for work in works:
            bench.lanes.enter(work)
        await until(works[1].settled.is_set)
        assert bench.log == ["sent 1", "aside 2"]
        assert bench.lanes.find("2") is None
        bench.let_go.set()
        await until(lambda: not bench.lanes.works())
        assert bench.log == ["sent 1", "aside 2", "sent 3"]
        assert link.in_hand == 0


async def test_a_work_that_nobody_wants_ends_where_it_waits() -> None:
    async with anyio.create_task_group() as tasks:
        bench, link = Bench(tasks), a_link()
        works = [a_work(link, "1"), a_work(link, "2")]
        for work in works:
            bench.lanes.enter(work)
        await anyio.sleep(0.01)
        works[1].end_wait()
        await until(works[1].settled.is_set)
        assert bench.log == ["sent 1", "aside 2"]
        bench.let_go.set()


async def test_a_work_whose_turn_comes_while_it_is_put_aside_is_not_sent() -> None:
    async with anyio.create_task_group() as tasks:
        bench, link = Bench(tasks), a_link()
        written = anyio.Event()

        async def slow(work: Work) -> None:
            bench.log.append(f"aside {work.intent.id}")
            await written.wait()

        bench.lanes = Lanes(tasks, SYSTEM, deliver=bench.deliver, put_aside=slow)
        works = [a_work(link, "1"), a_work(link, "2", seconds=0.05), a_work(link, "3")]
        for work in works:
            bench.lanes.enter(work)
        await until(lambda: "aside 2" in bench.log)
        bench.let_go.set()
        await until(works[0].settled.is_set)
        await anyio.sleep(0.05)
        assert bench.log == ["sent 1", "aside 2"]
        written.set()
        await until(lambda: not bench.lanes.works())
        assert bench.log == ["sent 1", "aside 2", "sent 3"]
        assert link.in_hand == 0


async def test_a_wait_that_was_ended_does_not_set_out() -> None:
    work = a_work(a_link(), "1")
    with work.patience(60):
        work.end_wait()
        assert not work.set_out()
    assert not work.out


async def test_what_set_out_is_not_stopped_by_its_deadline() -> None:
    work = a_work(a_link(), "1")
    reached = False
    with work.patience(0.05):
        assert work.set_out()
        work.end_wait()
        await anyio.sleep(0.2)
        reached = True
    assert reached
    assert work.out
