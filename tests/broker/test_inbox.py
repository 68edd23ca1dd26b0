"""The inbox's file: nothing is believed that is not written."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from broker.agent import AgentRecord
from broker.answer import Answer, refused, said
from broker.inbox import Changes, Inbox, Operation, Unkept

pytestmark = pytest.mark.anyio
STOP = Operation(op="stop", agent_id="a")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Inbox]:
    inbox = Inbox(path / "inbox.db")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(inbox.write)
        yield inbox
        tasks.cancel_scope.cancel()
    inbox.close()


async def test_an_answer_is_found_by_its_id_and_a_running_id_has_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as inbox:
        await inbox.begin("d", STOP, Changes(), 0)
        assert await inbox.find("d") is None
        assert await inbox.running() == [("d", STOP)]
        answer = Answer(status=200, body="ü".encode(), content_type="text/plain", retry_after=3)
        await inbox.finish("d", answer, Changes(), 0)
    async with opened(tmp_path) as inbox:
        assert await inbox.find("d") == answer
        assert await inbox.running() == []
    assert (tmp_path / "inbox.db").stat().st_mode & 0o777 == 0o600


async def test_agents_are_written_with_the_step_that_changes_them(tmp_path: Path) -> None:
    record = AgentRecord(id="a", slug="s", name="n", project_id="p", phase="created", gathered=b"\x00")
    async with opened(tmp_path) as inbox:
        await inbox.begin("d", STOP, Changes(kept=(record,)), 0)
        assert await inbox.agents() == [record]
        await inbox.finish("d", said(204), Changes(dropped=("a",)), 0)
        assert await inbox.agents() == []


async def test_an_id_that_is_forgotten_is_new_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as inbox:
        await inbox.begin("d", STOP, Changes(), 0)
        await inbox.forget("d", Changes())
        assert (await inbox.running(), await inbox.find("d")) == ([], None)


async def test_the_epoch_never_goes_down(tmp_path: Path) -> None:
    async with opened(tmp_path) as inbox:
        await inbox.see_epoch(9)
        await inbox.see_epoch(4)
    async with opened(tmp_path) as inbox:
        assert inbox.epoch == 9


async def test_answers_are_kept_for_a_day_and_as_long_as_their_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    async with opened(tmp_path) as inbox:
        await inbox.finish("day", said(200), Changes(), 0)
        await inbox.finish("week", said(200), Changes(), 7 * 86_400)
        await inbox.begin("running", STOP, Changes(), 0)
        monkeypatch.setattr(time, "time", lambda: now + 86_399)
        await inbox.prune()
        assert await inbox.find("day")
        monkeypatch.setattr(time, "time", lambda: now + 2 * 86_400)
        await inbox.prune()
        assert await inbox.find("day") is None
        assert await inbox.find("week")
        assert await inbox.running() == [("running", STOP)]


async def test_a_full_disk_is_told_to_everybody_who_waits_and_nothing_is_half_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as inbox:
        pages = inbox._file.execute("PRAGMA page_count").fetchone()[0]
        inbox._file.execute(f"PRAGMA max_page_count = {pages}")
        faults = []

        async def begin(name: str, config: dict[str, str]) -> None:
            try:
                operation = Operation(op="start", agent_id="a", config=config)
                await inbox.begin(name, operation, Changes(), 0)
            except Unkept as fault:
                faults.append(str(fault))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin, "small", {})
            tasks.start_soon(begin, "large", {"x": "y" * 100_000})
        assert faults
        assert all("full" in fault for fault in faults)
        assert await inbox.find("large") is None
        assert "large" not in [name for name, _ in await inbox.running()]
        inbox._file.execute("PRAGMA max_page_count = 1000000")
        await inbox.begin("large", STOP, Changes(), 0)


async def test_a_locked_file_is_waited_for_and_then_told(tmp_path: Path) -> None:
    async with opened(tmp_path) as inbox:
        inbox._file.execute("PRAGMA busy_timeout = 50")
        other = sqlite3.connect(tmp_path / "inbox.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unkept, match="locked"):
            await inbox.begin("d", STOP, Changes(), 0)
        other.execute("COMMIT")
        other.close()
        await inbox.begin("d", STOP, Changes(), 0)


async def test_a_number_that_no_column_holds_is_told_and_the_inbox_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as inbox:
        with pytest.raises(Unkept, match="too large"):
            await inbox.begin("d", STOP, Changes(), 2**63)
        await inbox.begin("d", STOP, Changes(), 0)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "inbox.db").write_text("not a database, but long enough to be looked at as one" * 50)
    with pytest.raises(Unkept, match="cannot be opened"):
        Inbox(tmp_path / "inbox.db")


@pytest.mark.parametrize("status", [200, 201, 202, 204, 400, 404, 409, 413, 422, 499])
def test_these_answers_are_final(status: int) -> None:
    assert refused(status, "x", "y").final


@pytest.mark.parametrize("status", [302, 408, 412, 425, 429, 500, 502, 503, 504])
def test_these_answers_are_none(status: int) -> None:
    assert not refused(status, "x", "y").final
