"""`pointsman db`, run as its own process on files in every state."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "conf" / "local.yaml"


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kernel", "db", *arguments, "--config", str(CONFIG)],
        cwd=directory,
        env={"PYTHONPATH": str(CONFIG.parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_missing_database_is_told_made_and_then_current(tmp_path: Path) -> None:
    missing = run(tmp_path, "check")
    assert (missing.returncode, "no schema yet" in missing.stdout) == (1, True)
    assert list(tmp_path.iterdir()) == [], "checking makes nothing"
    made = run(tmp_path, "migrate", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["before"] is None
    current = run(tmp_path, "check", "--json")
    assert (current.returncode, json.loads(current.stdout)["upToDate"]) == (0, True)
    assert "nothing was missing" in run(tmp_path, "migrate").stdout


def test_a_database_of_a_later_version_is_not_touched(tmp_path: Path) -> None:
    run(tmp_path, "migrate")
    with sqlite3.connect(tmp_path / "var" / "hub.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    checked = run(tmp_path, "check")
    assert (checked.returncode, "later version" in checked.stdout) == (78, True)
    migrated = run(tmp_path, "migrate")
    assert (migrated.returncode, "newer than this program" in migrated.stderr) == (78, True)


@pytest.mark.parametrize("command", ["check", "migrate"])
def test_what_is_no_database_is_told(tmp_path: Path, command: str) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "hub.db").write_text("not a database" * 100)
    told = run(tmp_path, command)
    assert told.returncode == 78
    assert "no SQLite database" in told.stderr
