"""`make run` in a folder whose path has a space, twice, as whoever runs the tests and as nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

HERE = Path(__file__).parents[2]
NOBODY = 65_534
PATIENCE = 300.0
"""Seconds for building an environment on a machine that does other things too."""


def checkout(into: Path) -> Path:
    """What git tracks, as it is in the working tree: a newcomer's clone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HERE, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (HERE / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HERE / name, into / name)
    return into


def everything_to(user: int, folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)


@contextmanager
def running(folder: Path, user: int | None) -> Iterator[dict[str, Any]]:
    """`make run` on any free port, until it says that it is ready; Ctrl-C at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POINTSMAN_")}
    log = (folder / "run.log").open("wb")
    with (
        log,
        subprocess.Popen(
            ["make", "run", "PORT=0"],
            cwd=folder,
            env={**environment, "HOME": str(folder)},
            stdout=log,
            stderr=log,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            start_new_session=True,
        ) as process,
    ):
        try:
            yield ready(folder, process)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(15) is not None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ready(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            told: dict[str, Any] = json.loads((folder / "var/ready.json").read_bytes())
        except (FileNotFoundError, ValueError):
            time.sleep(0.1)
        else:
            return told
    raise AssertionError((folder / "run.log").read_text()[-3000:])


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that everybody may enter: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="a new home ") as folder:
        yield Path(folder)


@pytest.mark.parametrize("user", [None, NOBODY] if os.geteuid() == 0 else [None], ids=lambda user: f"user={user}")
def test_make_run_works_twice_in_a_path_with_a_space(home: Path, user: int | None) -> None:
    checkout(home)
    if user is not None:
        everything_to(user, home)
    took = []
    for _ in range(2):
        started = time.monotonic()
        with running(home, user) as told:
            took.append(time.monotonic() - started)
            with urlopen(f"{told['url']}/readyz", timeout=10) as answer:
                assert answer.status == 200
            assert (home / "var/ready.json").stat().st_mode & 0o777 == 0o600
        assert not (home / "var/ready.json").exists()
    assert took[1] < took[0], "the second run built the environment again"
