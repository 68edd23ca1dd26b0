"""The mailbox of a node, what a NOTIFY carries, and what a bus knows of itself."""

from __future__ import annotations

import logging
from functools import partial

import anyio
import msgspec
import pytest

from kernel.clock import SYSTEM
from kernel.node import NodeId
from kernel.signals import MISSED, MOST_PENDING, BusState, InProcessSignals, Mailbox, Signal, SignalKind
from plugins.storage.postgres.bus import EVERY_NODE, KINDS, channel_of
from plugins.storage.postgres.coalescer import WINDOWS, Coalescer, Outbox, Window
from plugins.storage.postgres.connecting import Connection
from plugins.storage.postgres.dialling import LONGEST_PAUSE, Backoff, Role
from plugins.storage.postgres.health import DEAF, Health
from plugins.storage.postgres.payload import LIMIT, Hint, read, written

pytestmark = pytest.mark.anyio


def work(*ids: str, broker: str = "b") -> Signal:
    return Signal(kind=SignalKind.WORK, broker_id=broker, ids=ids)


def soon() -> float:
    return SYSTEM.monotonic() + 30


# -- the mailbox -------------------------------------------------------------------------------------------------


async def test_equal_signals_are_taken_once_and_in_order() -> None:
    mailbox = Mailbox(SYSTEM)
    for signal in (work("1"), work("2"), work("1"), work("3")):
        mailbox.put(signal)
    assert await mailbox.wait(soon()) == [work("1"), work("2"), work("3")]
    assert await mailbox.wait(SYSTEM.monotonic()) == []


async def test_who_waits_is_woken_by_a_signal() -> None:
    mailbox = Mailbox(SYSTEM)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_put_soon, mailbox)
        with anyio.fail_after(20):
            assert await mailbox.wait(soon()) == [work("1")]


async def _put_soon(mailbox: Mailbox) -> None:
    await anyio.sleep(0.01)
    mailbox.put(work("1"))


async def test_mailbox_that_overflows_asks_to_look_at_everything() -> None:
    mailbox = Mailbox(SYSTEM)
    for n in range(MOST_PENDING // 2 + 1):
        mailbox.put(work(str(n)))
    assert mailbox.missed
    mailbox.put(work("after"))
    assert await mailbox.wait(soon()) == [MISSED, work("after")]
    assert not mailbox.missed


async def test_few_signals_with_many_ids_overflow_too() -> None:
    mailbox = Mailbox(SYSTEM)
    for n in range(100):
        mailbox.put(work(*(f"{n}-{m}" for m in range(200))))
    assert (await mailbox.wait(soon()))[0] == MISSED


async def test_hub_that_is_alone_hears_what_it_signals_to_anybody() -> None:
    signals = InProcessSignals(SYSTEM)
    await signals.run()
    signals.signal(NodeId("me"), work("1"))
    signals.signal(None, work("2"))
    assert await signals.wait(soon()) == [work("1"), work("2")]
    assert (signals.state(), signals.trouble(), signals.reconnects()) == (BusState.HEALTHY, "", 0)


# -- what a NOTIFY carries ---------------------------------------------------------------------------------------


def test_payload_is_read_as_it_was_written() -> None:
    hint = Hint("work", "node", "broker", ("i1", "i2"))
    assert [read(text) for text in written(hint)] == [hint]
    assert [read(text) for text in written(Hint("moved", "node", "broker"))] == [Hint("moved", "node", "broker")]


@pytest.mark.parametrize("count", [1, 190, 203, 204, 1_000])
def test_payloads_are_as_many_as_the_ids_need_and_none_is_too_long(count: int) -> None:
    ids = tuple(f"0197{n:08x}-0000-7000-8000-00000000" for n in range(count))
    texts = list(written(Hint("ended", "node", ids=ids)))
    assert all(len(text.encode()) <= LIMIT for text in texts)
    assert tuple(one for text in texts for one in msgspec.json.decode(text, type=Hint).ids) == ids
    assert len(texts) == -(-count // max(1, len(msgspec.json.decode(texts[0], type=Hint).ids)))


@pytest.mark.parametrize("text", ["", "x", "null", "{}", "[]", '["work"]', '["work", 1]', '["work", "n", "b", [1]]'])
def test_payload_of_a_stranger_is_none_of_ours(text: str) -> None:
    assert read(text) is None


def test_payload_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert read('["work", "n", "b", ["i"], {"later": true}]') == Hint("work", "n", "b", ("i",))


def test_channel_of_a_node_is_a_name_that_the_server_takes() -> None:
    assert len(channel_of(SYSTEM.uuid4()).encode()) < 64
    assert channel_of(SYSTEM.uuid4()) != EVERY_NODE


def test_no_node_tells_another_that_it_missed_something() -> None:
    assert set(KINDS.values()) == set(SignalKind) - {SignalKind.MISSED}


# -- what goes out together --------------------------------------------------------------------------------------


def test_ids_for_one_broker_on_one_channel_go_out_together() -> None:
    outbox = Outbox()
    outbox.put("one", "work", "b", ("1", "2"))
    outbox.put("two", "work", "b", ("1",))
    outbox.put("one", "work", "b", ("2", "3"))
    assert outbox.weight == 6
    assert outbox.take() == ("one", "work", "b", ("1", "2", "3"))
    assert outbox.take() == ("two", "work", "b", ("1",))
    assert (len(outbox), outbox.weight) == (0, 0)


async def test_what_waits_to_be_sent_has_a_bound() -> None:
    coalescer = Coalescer(_nobody, "me", SYSTEM, failed=lambda: None)
    for n in range(25_000):
        coalescer.put("one", work(str(n)))
    assert coalescer._outbox.weight <= 10_000
    assert coalescer.dropped + coalescer._outbox.weight >= 25_000


async def _nobody(role: Role) -> Connection:
    raise AssertionError("not dialled")


def test_window_grows_only_while_notify_is_slow_and_shrinks_again() -> None:
    window = Window()
    seen = []
    for took in (0.001, 0.02, 0.02, 0.02, 0.007, 0.001, 0.001, 0.001):
        window.note(took)
        seen.append(window.seconds)
    assert seen == [WINDOWS[0], WINDOWS[1], WINDOWS[2], WINDOWS[2], WINDOWS[2], WINDOWS[1], WINDOWS[0], WINDOWS[0]]


def test_pauses_between_connections_grow_to_a_bound_and_begin_anew_after_use() -> None:
    backoff = Backoff(SYSTEM)
    pauses = [backoff.next() for _ in range(12)]
    assert pauses[0] <= 0.1
    assert all(LONGEST_PAUSE / 2 <= pause <= LONGEST_PAUSE for pause in pauses[-4:])
    backoff.reset()
    assert backoff.next() <= 0.1


# -- what the bus knows of itself --------------------------------------------------------------------------------


def healthy() -> Health:
    health = Health()
    health.listening()
    health.heard(0.001)
    health.caught_up()
    assert (health.state, health.trouble) == (BusState.HEALTHY, "")
    return health


def test_bus_is_blind_until_it_heard_itself_and_looked_for_what_it_missed() -> None:
    health = Health()
    states = [health.state]
    for step in (health.listening, health.caught_up, partial(health.heard, 0.001)):
        step()
        states.append(health.state)
    assert states == [BusState.BLIND, BusState.BLIND, BusState.BLIND, BusState.HEALTHY]


def test_what_was_heard_on_a_former_connection_proves_nothing() -> None:
    health = healthy()
    states = []
    for step in (partial(health.lost, ""), health.listening, health.caught_up, partial(health.heard, 0.001)):
        step()
        states.append(health.state)
    assert states == [BusState.BLIND, BusState.BLIND, BusState.BLIND, BusState.HEALTHY]


def test_long_way_round_is_slow_and_a_short_one_is_healthy_again() -> None:
    health = healthy()
    health.heard(0.3)
    assert (health.state, health.round_trip) == (BusState.SLOW, 0.3)
    health.heard(0.001)
    assert health.state is BusState.HEALTHY


def test_trouble_names_the_setting_only_when_signals_could_be_sent() -> None:
    health = healthy()
    health.deaf("")
    assert health.trouble == DEAF
    assert "listen_dsn" in DEAF
    health.lost("")
    assert health.trouble == DEAF, "opening it again does not change what was found"
    health.deaf("nothing listens there")
    assert health.trouble == "signals cannot be sent: nothing listens there"
    health.lost("nothing listens there")
    assert health.trouble == "the listener has no connection: nothing listens there"


def test_each_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    health = healthy()
    health.heard(0.001)
    health.lost("it went")
    health.lost("it is away")
    health.listening()
    health.deaf("")
    health.lost("")
    health.listening()
    health.heard(0.002)
    health.caught_up()
    told = [record.message for record in caplog.records]
    assert told == [
        "the signal bus is healthy: a signal takes 1.0 ms",
        "the signal bus is blind, work is found by polling: the listener has no connection: it went",
        "the signal bus is healthy: a signal takes 2.0 ms",
    ]
