"""Files that a hub cannot keep its database in: each is told at the start, with what to do."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kernel import Instant, Misconfigured, Node, NodeId, SchemaState
from plugins.storage import migrations
from plugins.storage.sqlite.opening import Options, opened, schema_of
from plugins.storage.sqlite.storage import SqliteStorage

pytestmark = pytest.mark.anyio

OPENS = """
import os, sys, tempfile, anyio
from plugins.storage.sqlite.opening import Options, opened
from kernel import Misconfigured, SchemaState

async def main():
    if "as-nobody" in sys.argv and os.geteuid() == 0:
        with tempfile.TemporaryDirectory() as loads_all_modules:
            await (await opened(Options(path=loads_all_modules + "/hub.db"))).close()
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    try:
        held = await opened(Options(path=sys.argv[1]))
    except Misconfigured as fault:
        print("refused:", fault.message, flush=True)
        return
    print("opened", flush=True)
    if "stay" in sys.argv:
        await anyio.sleep(60)
    await held.close()

anyio.run(main)
"""


def _start(path: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", OPENS, str(path), *more], stdout=subprocess.PIPE, text=True)


def _said(path: Path, *more: str) -> str:
    """`as-nobody`: as a user whom permissions bind; root is bound by none."""
    with _start(path, *more) as process:
        said, _ = process.communicate(timeout=60)
    return said


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that every user may look into."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


async def _refused(path: Path) -> str:
    with pytest.raises(Misconfigured) as refused:
        await opened(Options(path=str(path)))
    return refused.value.message


# -- what is refused ----------------------------------------------------------------------------------------------


async def test_a_path_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    told = await _refused(tmp_path)
    assert "it is a directory" in told
    assert "config: {path:" in told


async def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be used" in await _refused(tmp_path / "file" / "hub.db")


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, os.urandom(8192)])
async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hub.db"
    path.write_bytes(content)
    assert "no SQLite database" in await _refused(path)
    assert path.read_bytes() == content


async def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    await (await opened(Options(path=str(path)))).close()
    content = bytearray(path.read_bytes())
    content[100:4096] = os.urandom(3996)
    path.write_bytes(content)
    assert "damaged" in await _refused(path)


def test_a_directory_without_rights_is_refused(open_directory: Path) -> None:
    open_directory.chmod(0o555)
    said = _said(open_directory / "hub.db", "as-nobody")
    open_directory.chmod(0o755)
    assert said.startswith("refused:")
    assert "Permission denied" in said


def test_a_read_only_file_is_refused(open_directory: Path) -> None:
    path = open_directory / "hub.db"
    assert _said(path) == "opened\n"
    open_directory.chmod(0o777)
    path.chmod(0o444)
    Path(f"{path}.lock").chmod(0o666)
    said = _said(path, "as-nobody")
    assert said.startswith("refused:")
    assert "may not write" in said


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    await (await opened(Options(path=str(path)))).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    told = await _refused(path)
    assert "9999" in told
    assert "newer than this program" in told
    assert schema_of(str(path)) == SchemaState(found="9999", wanted=migrations.head(), known=False)


async def test_what_is_refused_leaves_the_file_free(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    path.write_bytes(b"no database" * 100)
    await _refused(path)
    path.unlink()
    await (await opened(Options(path=str(path)))).close()


# -- one hub on a file --------------------------------------------------------------------------------------------


async def test_a_second_opener_in_this_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    first = await opened(Options(path=str(path)))
    told = await _refused(path)
    assert f"process {os.getpid()}" in told
    assert "stop that one, or give this one its own file with `--set plugins.sqlite.path=…`" in told
    assert "PostgreSQL" not in told
    await first.close()
    await (await opened(Options(path=str(path)))).close()


async def test_a_second_hub_under_another_name_of_the_file_is_refused(tmp_path: Path) -> None:
    path, link = tmp_path / "hub.db", tmp_path / "link.db"
    first = await opened(Options(path=str(path)))
    link.symlink_to(path)
    assert "in use by another hub" in await _refused(link)
    await first.close()


async def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    with _start(path, "stay") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "opened\n"
        assert f"process {process.pid}" in await _refused(path)
        process.send_signal(signal.SIGKILL)
    await (await opened(Options(path=str(path)))).close()


# -- what is opened -----------------------------------------------------------------------------------------------


async def test_what_is_made_is_its_owners_only(tmp_path: Path) -> None:
    """Messages and sealed secrets stand in all of these files."""
    path = tmp_path / "a" / "b" / "hub %3f#.db"
    storage = SqliteStorage(await opened(Options(path=str(path))))
    await storage.join_node(Node(id=NodeId("n"), started_at=Instant(1), beat_at=Instant(1), version="1"))
    modes = {made.name: made.stat().st_mode & 0o777 for made in (path.parent, *path.parent.iterdir())}
    await storage.close()
    files = (path.name, *(f"{path.name}{more}" for more in ("-wal", "-shm", ".lock")))
    assert modes == {"b": 0o700, **dict.fromkeys(files, 0o600)}


@pytest.mark.parametrize(("synchronous", "level"), [("FULL", 2), ("NORMAL", 1)])
async def test_commits_are_as_durable_as_configured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, synchronous: str, level: int
) -> None:
    with caplog.at_level(logging.WARNING):
        options = Options(path=str(tmp_path / "hub.db"), synchronous=synchronous)  # type: ignore[arg-type]
        storage = SqliteStorage(await opened(options))
    assert await storage.sql.run(sa.text("PRAGMA synchronous")) == [(level,)]
    assert await storage.sql.run(sa.text("PRAGMA journal_mode")) == [("wal",)]
    assert await storage.sql.run(sa.text("PRAGMA foreign_keys")) == [(1,)]
    assert ("NOT durable" in caplog.text) == (synchronous == "NORMAL")
    await storage.close()


async def test_a_file_that_does_not_exist_has_no_schema(tmp_path: Path) -> None:
    assert schema_of(str(tmp_path / "hub.db")) == SchemaState(found=None, wanted=migrations.head(), known=True)
    assert list(tmp_path.iterdir()) == []
