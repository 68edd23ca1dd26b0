"""What is installed, and from what: the wheel holds what a hub needs, the lock holds names and hashes only."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def built(target: str, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(built("wheel", tmp_path_factory.mktemp("wheel")))


def test_wheel_holds_every_module(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    modules = {
        str(path.relative_to(ROOT)) for room in ("kernel", "plugins", "broker") for path in (ROOT / room).rglob("*.py")
    }
    assert modules <= held


def test_wheel_holds_the_configurations_and_the_marker_of_types(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    assert {f"kernel/conf/{path.name}" for path in (ROOT / "conf").iterdir()} <= held
    assert "kernel/py.typed" in held


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in wheel.namelist()} == {
        "kernel",
        "plugins",
        "broker",
        "pointsman-0.1.0.dist-info",
    }


def test_wheel_shows_the_readme_and_claims_a_licence_only_where_there_is_one(wheel: zipfile.ZipFile) -> None:
    told = wheel.read("pointsman-0.1.0.dist-info/METADATA").decode()
    assert (ROOT / "README.md").read_text() in told
    assert ("License" in told.partition("\n\n")[0]) == (ROOT / "LICENSE").exists()


def test_source_distribution_holds_what_a_reader_and_the_suite_need(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as source:
        held = {name.partition("/")[2] for name in source.getnames()}
    rooms = ("kernel", "plugins", "broker", "conf", "docs", "examples", "tests", "bench")
    endings = (".py", ".md", ".yaml", ".toml", ".svg")
    there = {str(path.relative_to(ROOT)) for room in rooms for path in (ROOT / room).rglob("*")}
    written = {name for name in there if name.endswith(endings) and "/." not in name}
    files = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "requirements.lock"}
    assert written | files <= held


def test_lock_holds_names_and_hashes_only() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith(" ")]
    assert all(re.match(r"[a-z0-9-]+==[0-9][^ ]*( ; .*)? \\$", line) for line in pinned)
    assert all(re.match(r"    --hash=sha256:[0-9a-f]{64}( \\)?$", line) for line in lines if line.startswith(" "))


def test_everything_that_is_asked_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["testing"],
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]
    names = {re.split(r"[\[>=<;~! ]", one)[0].lower() for one in asked}
    locked = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert names <= locked
