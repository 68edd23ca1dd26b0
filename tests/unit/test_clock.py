"""A hub goes by the database's clock, whatever its machine's says."""

from __future__ import annotations

import time

import pytest

from kernel.clock import Clock, Instant

MINUTES = 300_000_000


@pytest.mark.parametrize("off", [MINUTES, -MINUTES])
def test_a_wrong_clock_follows_the_databases(off: int) -> None:
    clock = Clock()
    truth = Instant(time.time_ns() // 1_000 + off)
    clock.follow(truth, clock.monotonic() - 0.010)
    assert abs(clock.now() - truth) < 1_000_000
    clock.follow(Instant(time.time_ns() // 1_000), clock.monotonic() - 0.010)
    assert abs(clock.now() - time.time_ns() // 1_000) < 1_000_000


def test_what_may_be_the_questions_own_time_changes_nothing() -> None:
    clock = Clock()
    clock.follow(Instant(clock.now() + 2_000_000), clock.monotonic() - 5.0)
    assert abs(clock.now() - time.time_ns() // 1_000) < 1_000_000


def test_one_clock_follows_without_another() -> None:
    one, other = Clock(), Clock()
    one.follow(Instant(one.now() + MINUTES), one.monotonic())
    assert one.now() - other.now() > MINUTES // 2
