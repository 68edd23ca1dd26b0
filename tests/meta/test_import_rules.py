"""The import rules hold, and each of them bites."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")

BREACHES = {
    "The kernel's arrows go down": ("kernel/route.py", "import kernel.dispatch"),
    "The kernel names no plugin": ("kernel/dispatch.py", "import plugins.routes.local"),
    "Only the command line starts a broker": ("kernel/hub.py", "import broker"),
    "A plugin imports the kernel's door": ("plugins/routes/local.py", "from kernel.route import Route"),
    "Rooms of plugins do not know each other": ("plugins/metrics/log.py", "import plugins.auth.dev"),
    "The broker knows the wire": ("broker/__init__.py", "from kernel import Intent"),
    "falcon lives in the edge": ("kernel/hub.py", "import falcon"),
    "uvicorn lives where a hub or a broker serves": ("kernel/lanes.py", "import uvicorn"),
    "SQL lives in the storage room": ("kernel/sweeps.py", "import sqlite3"),
    "pluggy lives in the plugins' door": ("plugins/routes/hold.py", "import pluggy"),
    "YAML lives in the configuration": ("kernel/hub.py", "import yaml"),
    "click and rich live in the command line": ("kernel/hub.py", "import rich"),
    "Keys and tokens live in three files": ("kernel/session.py", "import cryptography"),
    "Prometheus lives in its exporter": ("kernel/observe.py", "import prometheus_client"),
}


def lint(folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [str(LINTER), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_import_rules_hold() -> None:
    status, told = lint(ROOT)
    assert status == 0, told


@pytest.fixture(scope="module")
def breached(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy that breaks every rule at once."""
    folder = tmp_path_factory.mktemp("breached")
    for room in ("kernel", "plugins", "broker"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, line in BREACHES.values():
        path = folder / name
        path.write_text(f"{path.read_text()}\n{line}\n")
    status, told = lint(folder)
    assert status == 1, told
    return told


@pytest.mark.parametrize("rule", BREACHES)
def test_rule_bites(breached: str, rule: str) -> None:
    assert re.search(rf"^{re.escape(rule)}.* BROKEN", breached, re.MULTILINE), breached
