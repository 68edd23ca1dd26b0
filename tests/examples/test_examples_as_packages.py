"""An installed example passes its own tests, and `pointsman plugins check` takes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES
from tests.harness.hubprocess import POINTSMAN
from tests.harness.processes import ROOT

NAMES = sorted(file.parent.name for file in EXAMPLES.glob("*/pyproject.toml"))


def run(arguments: list[str], path: Path, directory: Path) -> str:
    """What it printed; exit 0. The example is found where it is installed, not in its folder."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])}
    done = subprocess.run(
        arguments, check=False, cwd=directory, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_an_examples_own_tests_pass(name: str, installed: Path, tmp_path: Path) -> None:
    test = shutil.copy(EXAMPLES / name / f"test_{name}.py", tmp_path)
    told = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)], installed, tmp_path)
    assert " passed" in told
    assert "skipped" not in told


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_found_fit_by_the_name_that_it_declares(name: str, installed: Path, tmp_path: Path) -> None:
    told = run([str(POINTSMAN), "plugins", "check", name], installed, tmp_path)
    assert "ok   the same request gets the same answer" in told
    assert "FIX" not in told
