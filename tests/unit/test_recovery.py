"""What a node does when the database told it more than it kept, on a storage that answers as a test wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup

from kernel import remembered as memory
from kernel.attempt import unsent
from kernel.broker import BrokerId
from kernel.clock import SYSTEM, Instant
from kernel.config import Settings
from kernel.drain import Drain
from kernel.ends import Ends
from kernel.errors import StorageUnavailable
from kernel.intent import Intent, IntentId, Op, State
from kernel.lanes import Lanes, Work
from kernel.link import Link
from kernel.links import Links
from kernel.node import Node, NodeId
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.pulse import Pulse
from kernel.recovery import Recovery
from kernel.remembered import Remembered, as_recorded
from kernel.signals import InProcessSignals
from kernel.storage import (
    Changed,
    Claims,
    End,
    Era,
    Held,
    Known,
    NewIntent,
    PutBack,
    Recorded,
    Recording,
    Recovered,
    Settled,
)
from kernel.tunnel import Outcome
from kernel.waiters import Waiters
from tests.unit.test_dispatch_lanes import Silent, a_link, a_work, until

pytestmark = pytest.mark.anyio
NODE = Node(id=NodeId("n"), started_at=Instant(0), beat_at=Instant(0), version="t")
ANSWERED = Outcome(kind="end", reason="answered")


class Script:
    """Answers each operation with the next of what was laid ready for it, and writes down what was asked."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.asked: list[Any] = []
        self.ready: dict[str, list[Any]] = {}

    def lay(self, operation: str, *answers: Any) -> None:
        self.ready.setdefault(operation, []).extend(answers)

    async def _next(self, operation: str, asked: Any, usual: Any) -> Any:
        self.log.append(operation)
        self.asked.append(asked)
        waiting = self.ready.get(operation)
        answer = waiting.pop(0) if waiting else usual
        if isinstance(answer, BaseException):
            raise answer
        return await answer(asked) if callable(answer) else answer

    async def join_node(self, node: Node) -> Changed:
        return Changed()

    async def claim(self, request: Any) -> Claims:
        return cast("Claims", await self._next("claim", request, Claims(now=SYSTEM.now())))

    async def recover(self, known: Known) -> Recovered:
        return cast("Recovered", await self._next("recover", known, Recovered()))

    async def era(self) -> Era:
        return cast("Era", await self._next("era", None, Era(id="one", since=100)))

    async def in_hand(self, node_id: NodeId) -> list[Held]:
        return cast("list[Held]", await self._next("in_hand", node_id, []))

    async def put_back(self, back: PutBack) -> Settled:
        return cast("Settled", await self._next("put_back", back, Settled(accepted=True)))

    async def end(self, end: End) -> Settled:
        return cast("Settled", await self._next("end", end, Settled(accepted=True)))

    async def record(self, recording: Recording) -> Recorded:
        return cast("Recorded", await self._next("record", recording, Recorded()))

    async def insert_ended(self, intent: NewIntent, end: End) -> Settled:
        return cast("Settled", await self._next("insert_ended", intent, Settled(accepted=True)))


class Bench:
    """A node with one link, whose deliveries last until they are let go."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.storage = Script()
        storage = cast("Any", self.storage)
        self.link = a_link()
        self.breaks = 0
        self.sent: list[str] = []
        self.let_go = anyio.Event()
        signals, observer = InProcessSignals(SYSTEM), Observer(Silent(), Silent(), Silent())
        self.lanes = Lanes(tasks, SYSTEM, deliver=self._deliver, put_aside=self._deliver)
        self.pulse = Pulse(storage, NODE, SYSTEM, every=1, lost_after=60, grace=30, breaks=lambda: self.breaks)
        self.ends = Ends(
            storage=storage,
            signals=signals,
            notices=Notices(signals=signals, observer=observer, node_id=NODE.id, clock=SYSTEM),
            waiters=Waiters(storage, SYSTEM, ()),
            observer=observer,
            clock=SYSTEM,
            node_id=NODE.id,
            tasks=tasks,
            lazy=lambda _: True,
        )
        links = Links(
            storage=storage,
            node_id=NODE.id,
            clock=SYSTEM,
            settings=Settings().channel,
            window=2,
            tells_conflict=lambda _: None,
        )
        links._links["b"] = self.link
        self.recovery = Recovery(
            storage=storage,
            links=links,
            lanes=self.lanes,
            ends=self.ends,
            pulse=self.pulse,
            observer=observer,
            clock=SYSTEM,
            every=0.02,
            strangers_every=0.02,
            breaks=lambda: self.breaks,
        )
        self.drain = Drain(
            storage=storage,
            links=links,
            lanes=self.lanes,
            recovery=self.recovery,
            observer=observer,
            clock=SYSTEM,
            tasks=tasks,
            lazy=lambda _: True,
        )

    async def _deliver(self, work: Work) -> None:
        self.sent.append(work.intent.id)
        await self.let_go.wait()

    def enter(self, name: str) -> Work:
        """Sent, and not answered."""
        work = a_work(self.link, name, agent=name)
        self.lanes.enter(work)
        return work

    async def ended(self, name: str) -> Work:
        """This node wrote its end, and has nothing of it in hand any more."""
        work = a_work(self.link, name)
        await self.ends.settle(work, ANSWERED)
        self.storage.log.clear()
        return work


@pytest.fixture
async def bench() -> Any:
    async with anyio.create_task_group() as tasks:
        yield Bench(tasks)
        tasks.cancel_scope.cancel()


def row(work: Work, **more: Any) -> Intent:
    return msgspec.structs.replace(work.intent, **more)


def refused(intent: Intent | None) -> Settled:
    return Settled(accepted=False, intent=intent)


def stranger(work: Work) -> Held:
    return Held(intent_id=work.intent.id, op=work.intent.op, broker_id=BrokerId("b"), attempt=work.attempt)


# -- what leads to a look at the rows -------------------------------------------------------------------------


async def test_after_a_claim_that_failed_the_rows_are_looked_at_before_the_next(bench: Bench) -> None:
    bench.storage.lay("claim", StorageUnavailable())
    bench.drain.start(bench.link)
    await until(lambda: bench.storage.log.count("claim") == 2)
    assert bench.storage.log == ["claim", "recover", "claim"]


async def test_a_look_that_failed_is_repeated_before_the_next_claim(bench: Bench) -> None:
    bench.storage.lay("recover", StorageUnavailable())
    bench.link.doubted = True
    bench.drain.start(bench.link)
    await until(lambda: "claim" in bench.storage.log)
    assert bench.storage.log == ["recover", "recover", "claim"]


async def test_without_a_reason_nobody_looks(bench: Bench) -> None:
    bench.drain.start(bench.link)
    await until(lambda: "claim" in bench.storage.log)
    assert bench.storage.log == ["claim"]


@pytest.mark.parametrize("what", ["a break", "an era"])
async def test_a_reason_puts_every_session_in_doubt(bench: Bench, what: str) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.recovery.run)
        await until(lambda: bench.storage.log.count("era") >= 2)
        assert not bench.link.doubted
        if what == "a break":
            bench.breaks += 1
        else:
            bench.storage.lay("era", Era(id="two", since=200))
        await until(lambda: bench.link.doubted)
        tasks.cancel_scope.cancel()


async def test_after_a_crash_of_the_database_nobody_is_judged_for_a_while(bench: Bench) -> None:
    await bench.pulse.start()
    await bench.recovery._look()
    assert bench.pulse.may_judge
    bench.storage.lay("era", Era(id="two", since=200))
    await bench.recovery._look()
    assert not bench.pulse.may_judge


async def test_what_is_found_once_may_be_an_answer_under_way(bench: Bench) -> None:
    bench.storage.lay("in_hand", [stranger(a_work(bench.link, "1"))], [stranger(a_work(bench.link, "2"))], [])
    for _ in range(3):
        await bench.recovery._look_for_strangers()
    assert not bench.link.doubted
    bench.storage.lay("in_hand", [stranger(a_work(bench.link, "1"))], [stranger(a_work(bench.link, "1"))])
    for _ in range(2):
        await bench.recovery._look_for_strangers()
    assert bench.link.doubted


# -- what is done ---------------------------------------------------------------------------------------------


async def test_a_claim_of_what_is_in_hand_is_not_sent_again(bench: Bench) -> None:
    work = bench.enter("1")
    await until(lambda: bench.sent == ["1"])
    bench.storage.lay("claim", Claims(intents=(row(work),), now=SYSTEM.now()))
    bench.drain.start(bench.link)
    await until(lambda: "recover" in bench.storage.log)
    assert bench.sent == ["1"]
    assert bench.lanes.find("1") is work


async def test_a_later_attempt_of_what_is_in_hand_is_another_work(bench: Bench) -> None:
    """It was put back, and the answer to that is still under way."""
    work = bench.enter("1")
    again = row(work, attempts=2, deadline_at=Instant(SYSTEM.now() + 60_000_000))
    bench.storage.lay("claim", Claims(intents=(again,), now=SYSTEM.now()))
    bench.drain.start(bench.link)
    await until(lambda: bench.lanes.find("1") is not work)
    bench.let_go.set()
    await until(lambda: bench.sent == ["1", "1"])


async def test_a_claim_of_what_ended_is_not_sent_again(bench: Bench) -> None:
    work = await bench.ended("1")
    bench.storage.lay("claim", Claims(intents=(row(work),), now=SYSTEM.now()))
    bench.storage.lay("recover", Recovered(unended=(work.intent.id,)))
    bench.drain.start(bench.link)
    await until(lambda: "end" in bench.storage.log)
    assert (bench.sent, bench.storage.log[:3]) == ([], ["claim", "recover", "end"])


async def test_ends_are_written_again_in_their_order_with_their_rows_if_those_are_gone(bench: Bench) -> None:
    works = [await bench.ended(name) for name in ("1", "2", "3")]
    ids = [work.intent.id for work in works]
    bench.storage.lay("recover", Recovered(unended=(ids[2],), gone=(ids[0],)))
    await bench.recovery.agree(bench.link)
    assert bench.storage.log == ["recover", "insert_ended", "end"]
    assert [asked.id for asked in bench.storage.asked if isinstance(asked, NewIntent)] == [ids[0]]


async def test_what_came_in_hand_while_the_rows_were_read_is_no_stranger(bench: Bench) -> None:
    """A LOCAL call that got its row meanwhile."""

    async def meanwhile(_: Known) -> Recovered:
        return Recovered(strangers=(stranger(bench.enter("1")), stranger(a_work(bench.link, "2"))))

    bench.storage.lay("recover", meanwhile)
    await bench.recovery.agree(bench.link)
    assert [asked.intent_id for asked in bench.storage.asked if isinstance(asked, PutBack)] == ["2"]


async def test_a_session_that_lost_is_hung_up(bench: Bench) -> None:
    bench.storage.lay("recover", Recovered(stale=True, strangers=(stranger(a_work(bench.link, "1")),)))
    await bench.recovery.agree(bench.link)
    assert bench.link.closing == (4409, "replaced")
    assert bench.storage.log == ["recover"]


async def test_work_whose_row_and_session_are_gone_is_recorded_anew_when_its_link_is_lost(bench: Bench) -> None:
    """Whoever gets the session next drives it again, and its broker answers the same."""
    work = bench.enter("1")
    bench.storage.lay("recover", Recovered(stale=True, gone=(work.intent.id,)))
    await bench.recovery.agree(bench.link)
    bench.link.lose()
    await bench.ends.settle(work, Outcome(kind="lost", reason="link_lost"))
    [recording] = [asked for asked in bench.storage.asked if isinstance(asked, Recording)]
    assert [(new.id, new.attempts, new.claim) for new in recording.intents] == [("1", 1, bench.link.session)]


# -- ends that find their claim undone ------------------------------------------------------------------------


async def settle(bench: Bench, *refusals: Callable[[Work], Intent | None]) -> tuple[Work, list[str]]:
    work = a_work(bench.link, "1")
    bench.storage.lay("end", *(refused(refusal(work)) for refusal in refusals))
    with anyio.fail_after(30):
        await bench.ends.settle(work, ANSWERED)
    return work, bench.storage.log


async def test_an_end_waits_until_its_claim_is_good_again(bench: Bench) -> None:
    _, log = await settle(bench, lambda work: row(work, state=State.PENDING, attempts=0, claimed_session=None))
    assert (log, bench.link.doubted, bench.ends.late) == (["end", "end"], True, 0)


async def test_an_end_finds_its_row_claimed_again_between_two_looks(bench: Bench) -> None:
    """The statement found it pending, the look at why found it in the same hands."""
    _, log = await settle(bench, lambda work: row(work, claimed_session="s"))
    assert (log, bench.ends.late) == (["end", "end"], 0)


@pytest.mark.parametrize(
    "other",
    [
        {"claimed_session": "another"},
        {"attempts": 2},
        {"attempts": 2, "claimed_session": "s"},
        {"state": State.PENDING, "claimed_session": None},
        {"state": State.EXPIRED, "attempts": 0},
    ],
)
async def test_an_end_of_what_is_in_other_hands_is_dropped(bench: Bench, other: dict[str, Any]) -> None:
    _, log = await settle(bench, lambda work: row(work, **other))
    assert (log, bench.link.doubted, bench.ends.late) == (["end"], False, 1)


async def test_an_end_whose_row_is_gone_brings_it_along(bench: Bench) -> None:
    work, log = await settle(bench, lambda _: None)
    assert log == ["end", "insert_ended"]
    assert bench.storage.asked[-1].id == work.intent.id


async def test_over_a_link_that_is_gone_nothing_is_made_good(bench: Bench) -> None:
    """Whoever has the session now drives it again."""
    bench.link.lose()
    _, log = await settle(bench, lambda work: row(work, state=State.PENDING, attempts=0))
    assert (log, bench.ends.late) == (["end"], 1)


# -- may it have happened? ------------------------------------------------------------------------------------


async def test_what_is_older_than_the_era_may_have_been_claimed_before(bench: Bench) -> None:
    work = a_work(bench.link, "1")
    older, newer = row(work, seq=99), row(work, seq=100)
    assert bench.recovery.unsure(newer), "nothing is known yet"
    await bench.recovery._look()
    assert (bench.recovery.unsure(older), bench.recovery.unsure(newer)) == (True, False)
    bench.breaks += 1
    assert bench.recovery.unsure(newer), "a connection broke: there may be another era by now"
    await bench.recovery._look()
    assert not bench.recovery.unsure(newer)


async def test_a_claim_knows_whether_it_may_be_the_second(bench: Bench) -> None:
    await bench.recovery._look()
    deadline = Instant(SYSTEM.now() + 60_000_000)
    intents = tuple(
        row(a_work(bench.link, str(seq), agent=str(seq)), seq=seq, deadline_at=deadline) for seq in (1, 100)
    )
    bench.storage.lay("claim", Claims(intents=intents, now=SYSTEM.now()))
    bench.drain.start(bench.link)
    await until(lambda: len(bench.sent) == 2)
    assert [work.retried for work in bench.lanes.works()] == [True, False]


def test_what_may_have_been_tried_before_is_not_told_as_undone() -> None:
    link = a_link()
    intent = a_work(link, "1").intent
    for unsure, code in ((True, "outcome_unknown"), (False, "broker_timeout")):
        error = unsent(Work(intent=intent, link=link, until=0.0, unsure=unsure)).error
        assert error is not None
        assert error.code == code


# -- what is remembered ---------------------------------------------------------------------------------------


class Hand:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def monotonic(self) -> float:
        return self.at


def end(link: Link, name: str) -> tuple[End, Intent]:
    intent = a_work(link, name).intent
    told = End(
        intent_id=intent.id, op=intent.op, state=State.DONE, session=link.session, attempt=1, reason="answered",
        agent_id=intent.agent_id,
    )  # fmt: skip
    return told, intent


def kept(remembered: Remembered, link: Link) -> list[str]:
    return [ending.end.intent_id for ending in remembered.of(link.session)]


def test_ends_are_remembered_for_five_minutes() -> None:
    hand, link = Hand(), a_link()
    remembered = Remembered(cast("Any", hand))
    remembered.keep(*end(link, "1"), None, 10)
    hand.at += 299
    remembered.keep(*end(link, "2"), None, 10)
    assert kept(remembered, link) == ["1", "2"]
    hand.at += 2
    remembered.keep(*end(link, "3"), None, 10)
    assert kept(remembered, link) == ["2", "3"]
    assert remembered.find(IntentId("1")) is None


@pytest.mark.parametrize(("limit", "most"), [("MOST", 2), ("MOST_BYTES", 20)])
def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    monkeypatch.setattr(memory, limit, most)
    link = a_link()
    remembered = Remembered(SYSTEM)
    for name in ("1", "2", "3", "3"):
        remembered.keep(*end(link, name), None, 10)
    assert kept(remembered, link) == ["2", "3"]


def test_what_brings_a_row_back_says_what_the_row_said() -> None:
    intent = row(a_work(a_link(), "1"), run_id="r", args={"x": 1}, deadline_at=Instant(7), created_at=Instant(5))
    again = as_recorded(intent)
    assert again is not None
    same = set(Intent.__struct_fields__) & set(NewIntent.__struct_fields__)
    assert all(getattr(again, name) == getattr(intent, name) for name in same)


def test_nothing_brings_a_message_back() -> None:
    assert as_recorded(row(a_work(a_link(), "1"), op=Op.MESSAGE)) is None
