"""Two processes with one identity: from when on they are taken for two, and how often that is told."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from kernel.broker import Broker, BrokerId
from kernel.conflict import Conflicts
from kernel.links import Turns
from kernel.storage import BrokerEdit

pytestmark = pytest.mark.anyio


def verdicts(*claims: tuple[float, str | None]) -> list[bool]:
    turns = Turns()
    told = []
    for at, instance in claims:
        turns.note(at, instance)
        told.append(turns.twins(at))
    return told


def test_the_third_change_between_two_instances_within_a_minute_shows_them() -> None:
    assert verdicts((0, "a"), (10, "b"), (20, "a"), (30, "b")) == [False, False, False, True]


def test_changes_that_are_more_than_a_minute_apart_show_nothing() -> None:
    assert not any(verdicts((0, "a"), (25, "b"), (50, "a"), (75, "b"), (100, "a")))


@pytest.mark.parametrize("instances", ["abcdefgh", "aaaaaaaa", "aba", [None] * 8])
def test_restarts_redials_and_one_return_show_nothing(instances: Any) -> None:
    assert not any(verdicts(*((at, instance) for at, instance in enumerate(instances))))


class Edited:
    def __init__(self) -> None:
        self.edits: list[BrokerEdit] = []

    async def edit_broker(self, edit: BrokerEdit) -> None:
        self.edits.append(edit)


async def test_a_conflict_is_logged_and_counted_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    storage: Any = Edited()
    async with anyio.create_task_group() as tasks:
        conflicts = Conflicts(storage, tasks)
        for known in (False, True, True, False):
            conflicts.tell(Broker(id=BrokerId("b"), name="twin", slug="twin", conflict=known))
    assert [edit.conflict for edit in storage.edits] == [True, True]
    assert conflicts.told == 2
    assert len([one for one in caplog.records if one.levelno == logging.ERROR and "twin" in one.message]) == 2
