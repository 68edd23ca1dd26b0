"""Limits of the edge, on a clock that the test holds."""

from __future__ import annotations

import pytest

from kernel.api.limits import MOST_NAMES, Recent
from kernel.clock import Clock
from kernel.errors import RateLimited


class Held(Clock):
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Held:
    return Held()


def test_what_is_within_the_limit_passes(clock: Held) -> None:
    recent = Recent(clock, 3, 60.0)
    for _ in range(3):
        recent.check("a")
        recent.note("a")


def test_one_too_many_is_told_when_to_come_back(clock: Held) -> None:
    recent = Recent(clock, 2, 60.0)
    recent.note("a")
    clock.time += 15.0
    recent.note("a")
    with pytest.raises(RateLimited) as told:
        recent.check("a")
    assert told.value.retry_after == 45.0


def test_the_window_slides(clock: Held) -> None:
    recent = Recent(clock, 2, 60.0)
    recent.note("a")
    clock.time += 30.0
    recent.note("a")
    clock.time += 31.0
    recent.check("a")
    recent.note("a")
    with pytest.raises(RateLimited):
        recent.check("a")


def test_what_is_past_is_not_kept(clock: Held) -> None:
    recent = Recent(clock, 1000, 60.0)
    for _ in range(500):
        recent.note("a")
    clock.time += 60.0
    recent.note("a")
    assert len(recent._names["a"]) == 1


def test_one_name_does_not_use_up_anothers(clock: Held) -> None:
    recent = Recent(clock, 1, 60.0)
    recent.note("a")
    recent.check("b")


def test_no_number_of_names_fills_the_memory(clock: Held) -> None:
    recent = Recent(clock, 1, 60.0)
    for n in range(MOST_NAMES + 5):
        recent.note(f"address-{n}")
    recent.check("address-0")
    with pytest.raises(RateLimited):
        recent.check(f"address-{MOST_NAMES + 4}")
