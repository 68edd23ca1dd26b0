"""Installs the examples from their folders, as their users would, and serves hubs that list them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.hubclient import HubClient, Json
from tests.harness.hubprocess import CONFIG, HubProcess
from tests.harness.processes import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed examples, to be put on the path; nothing is downloaded."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    folders = [str(file.parent) for file in sorted(EXAMPLES.glob("*/pyproject.toml"))]
    assert len(folders) >= 2, f"examples expected in {EXAMPLES}, found {folders}"
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    done = subprocess.run(
        [*pip, "--target", str(target), *folders], check=False, capture_output=True, text=True, env=environ, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


class ExtendedHub(HubProcess):
    """A hub with one more plugin, asked before all routes."""

    def __init__(self, directory: Path, entry: str, *, path: Path | None = None) -> None:
        """`entry` is YAML, as it stands in a list; `path` is a folder of installed packages."""
        first = "  - use: routes.local\n"
        assert first in CONFIG
        super().__init__(directory, config=CONFIG.replace(first, entry + first))
        self._path = path

    def arguments(self, port: int) -> list[str]:
        path = os.pathsep.join(str(folder) for folder in (ROOT, self._path) if folder)
        return ["env", f"PYTHONPATH={path}", *super().arguments(port)]


async def plugin_row(hub: HubClient, name: str) -> Json:
    """What `GET /plugins` says of one plugin."""
    rows = (await hub.get("/plugins"))["plugins"]
    (found,) = (row for row in rows if row["name"] == name)
    assert isinstance(found, dict)
    return found
