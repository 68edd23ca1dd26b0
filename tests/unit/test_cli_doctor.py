"""`pointsman doctor`, run as its own process: what it finds on SQLite, in plugins, and in a hub that runs."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from kernel.finding import Finding, Level
from plugins.storage.postgres.budget import Budget, Room
from plugins.storage.postgres.connecting import Target
from plugins.storage.postgres.examining import Facts, judged
from tests.harness.hubprocess import HubProcess

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "conf" / "local.yaml"


def run(
    directory: Path, *arguments: str, config: Path = CONFIG, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kernel", "doctor", *arguments, "--config", str(config)],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def found(
    directory: Path, *sets: str, config: Path = CONFIG, env: dict[str, str] | None = None
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the findings by their names."""
    arguments = [part for one in sets for part in ("--set", one)]
    done = run(directory, "--json", *arguments, config=config, env=env)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] == (done.returncode == 0)
    return done.returncode, {finding["check"]: finding for finding in document["findings"]}


def migrated(directory: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "kernel", "db", "migrate", "--config", str(CONFIG)],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0
    return directory / "var" / "hub.db"


# -- one hub on SQLite ---------------------------------------------------------------------------------------


def test_a_new_place_is_good_and_stays_as_it_was(tmp_path: Path) -> None:
    status, findings = found(tmp_path)
    assert status == 0
    assert {finding["level"] for finding in findings.values()} == {"ok"}
    assert "will be made" in findings["database"]["told"]
    assert list(tmp_path.iterdir()) == []


def test_people_get_a_line_for_each_check(tmp_path: Path) -> None:
    told = run(tmp_path)
    lines = told.stdout.splitlines()
    assert told.returncode == 0
    assert lines[0].split() == ["CHECK", "FOUND"]
    assert all(line.split()[0] == "ok" for line in lines[1:])


def test_a_database_in_use_is_looked_at_all_the_same(tmp_path: Path) -> None:
    path = migrated(tmp_path)
    with Path(f"{path}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, findings = found(tmp_path)
    assert status == 0
    assert findings["lock"]["level"] == "warn"
    assert "stop it" in findings["lock"]["fix"]
    assert "up to date" in findings["schema"]["told"]


def test_a_schema_of_a_later_version_is_found(tmp_path: Path) -> None:
    path = migrated(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    status, findings = found(tmp_path)
    assert (status, findings["schema"]["level"]) == (78, "fail")
    assert "9999" in findings["schema"]["told"]


def test_brokers_in_conflict_are_found(tmp_path: Path) -> None:
    path = migrated(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO runtime_brokers (id, name, slug, conflict, created, updated) "
            "VALUES ('018f0000-0000-7000-8000-000000000001', 'twin', 'twin', 1, 1, 1)"
        )
    connection.close()
    status, findings = found(tmp_path)
    assert (status, findings["brokers"]["level"]) == (0, "warn")
    assert "twin" in findings["brokers"]["told"]


def test_what_is_no_database_is_found(tmp_path: Path) -> None:
    (tmp_path / "hub.db").write_text("not a database" * 100)
    status, findings = found(tmp_path, "plugins.sqlite.path=hub.db")
    assert (status, findings["database"]["level"]) == (78, "fail")
    assert "no SQLite database" in findings["database"]["told"]


@pytest.mark.parametrize("path", ["folder", "file/hub.db"])
def test_a_place_that_cannot_hold_a_database_is_found(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    status, findings = found(tmp_path, f"plugins.sqlite.path={path}")
    assert (status, findings["database"]["level"]) == (78, "fail")
    assert "plugin sqlite" in findings["database"]["fix"]


# -- what comes before the database --------------------------------------------------------------------------


def test_every_mistake_of_a_configuration_is_told(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("node: {beat: never}\nplugins:\n  - use: sqlite\n  - use: no.such.plugin\n")
    done = run(tmp_path, "--json", config=config)
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 78
    assert {finding["check"] for finding in findings} == {"configuration"}
    told = " ".join(finding["told"] for finding in findings)
    assert all(word in told for word in ("bad.yaml:1", "node.beat", "no.such.plugin"))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    status, findings = found(tmp_path, config=tmp_path / "none.yaml")
    assert (status, "no such file" in findings["configuration"]["told"]) == (78, True)


def test_a_hub_that_others_could_reach_with_the_token_of_a_developer_is_told(tmp_path: Path) -> None:
    status, findings = found(tmp_path, "server.host=0.0.0.0")
    assert (status, findings["auth.dev"]["level"]) == (78, "fail")
    assert "`server.host: 0.0.0.0`" in findings["auth.dev"]["told"]


def test_a_short_secret_is_told(tmp_path: Path) -> None:
    status, findings = found(tmp_path, env={"SESSION_SECRET": "short"})
    assert (status, findings["secret"]["level"]) == (78, "fail")
    assert "short " not in findings["secret"]["told"]


def test_a_plugin_that_cannot_look_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from kernel import hookimpl\n\n\nclass Plugin:\n    name = 'broken'\n    api = 1\n\n"
        "    @hookimpl\n    async def diagnose(self):\n        raise RuntimeError('no idea')\n"
    )
    config = tmp_path / "with.yaml"
    config.write_text("plugins:\n  - use: ./broken.py\n  - use: sqlite\n    config: {path: hub.db}\n")
    status, findings = found(tmp_path, config=config)
    assert status == 78
    assert "no idea" in findings["plugin broken"]["told"]
    assert findings["database"]["level"] == "ok"


# -- and a hub that runs -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_running_hub_says_whether_it_is_ready(tmp_path: Path) -> None:
    async with HubProcess(tmp_path / "hub") as hub:
        status, findings = await anyio.to_thread.run_sync(
            lambda: found(hub.directory, config=hub.directory / "hub.yaml", env={"POINTSMAN_HUB": hub.url})
        )
        assert (status, findings["hub"]["level"]) == (0, "ok")
        assert f"{hub.url} is ready" in findings["hub"]["told"]
        assert findings["lock"]["level"] == "warn"


# -- what no server here can be --------------------------------------------------------------------------------

BUDGET = Budget(pool=20, dedicated=4)
GOOD = Facts(
    version=18_00_02,
    encoding="UTF8",
    takes_writes=True,
    schema="public",
    role="hub",
    may_create=True,
    may_write=True,
    tables=[],
    room=Room(max_connections=100, reserved=3, user_limit=None, database_limit=None, used=10),
    fsync=True,
    durable=True,
    queue=0.0,
    offset=0.1,
    pooled=False,
)


def of(**changes: Any) -> dict[str, Finding]:
    target = Target(dsn="postgresql://hub@db/hub")
    facts = msgspec.structs.replace(GOOD, **changes)
    return {finding.check: finding for finding in judged(facts, BUDGET, target)}


def test_a_good_server_has_no_complaint() -> None:
    assert {finding.level for finding in of().values()} == {Level.OK}


@pytest.mark.parametrize(
    ("check", "level", "changes", "word"),
    [
        ("version", Level.FAIL, {"version": 14_00_20}, "15 or newer"),
        ("version", Level.WARN, {"version": 15_00_15}, "15.16"),
        ("version", Level.WARN, {"version": 18_00_01}, "18.2"),
        ("version", Level.OK, {"version": 19_00_00}, ""),
        ("durability", Level.WARN, {"durable": False}, "synchronous_commit"),
        ("durability", Level.WARN, {"fsync": False}, "fsync"),
        ("notifications", Level.WARN, {"queue": 0.7}, "old transaction"),
        ("clock", Level.WARN, {"offset": -300.0}, "clock"),
        ("pooler", Level.WARN, {"pooled": True}, "statement_cache_size: 0"),
    ],
)
def test_a_weak_server_is_told_of(check: str, level: Level, changes: dict[str, Any], word: str) -> None:
    finding = of(**changes)[check]
    assert finding.level is level
    assert word in finding.fix


@pytest.mark.parametrize(
    ("room", "hubs"),
    [
        (GOOD.room, 3),
        (Room(max_connections=103, reserved=3, user_limit=None, database_limit=None, used=0), 4),
        (Room(max_connections=500, reserved=3, user_limit=50, database_limit=None, used=0), 2),
        (Room(max_connections=500, reserved=3, user_limit=None, database_limit=30, used=0), 1),
        (Room(max_connections=20, reserved=3, user_limit=None, database_limit=None, used=0), 0),
    ],
)
def test_the_budget_says_how_many_hubs_fit(room: Room, hubs: int) -> None:
    assert room.hubs(BUDGET) == hubs
    level = of(room=room)["connections"].level
    assert level is (Level.OK if hubs > 1 else Level.WARN if hubs else Level.FAIL)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"max_connections": 20}, "raise max_connections to 28 or more"),
        ({"user_limit": 8}, "raise the CONNECTION LIMIT of the user to 25 or more"),
        ({"database_limit": 8}, "raise the CONNECTION LIMIT of the database to 25 or more"),
    ],
)
def test_the_limit_that_is_too_low_is_the_one_to_raise(changes: dict[str, int], fix: str) -> None:
    assert fix in of(room=msgspec.structs.replace(GOOD.room, **changes))["connections"].fix


@pytest.mark.parametrize(("running", "level"), [(2, Level.OK), (3, Level.WARN), (4, Level.WARN)])
def test_one_hub_more_than_fit_is_told_before_it_starts(running: int, level: Level) -> None:
    finding = of(room=msgspec.structs.replace(GOOD.room, running=running))["connections"]
    assert finding.level is level
    assert f"3 such hubs fit, {running} run now" in finding.told
