"""Pointsman refuses to start beside another distribution that ships one of its import names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kernel.__main__ import intruders

ROOT = Path(__file__).resolve().parents[2]


def installed(folder: Path, distribution: str, *names: str) -> None:
    """As a wheel leaves it behind."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "RECORD").write_text("".join(f"{name},sha256=x,1\n" for name in names))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("kernel/__init__.py", "kernel/x.py"), ["other ships `kernel`"]),
        (("plugins/x.py",), ["other ships `plugins`"]),
        (("broker.py",), ["other ships `broker`"]),
        (("kernel/x.py", "broker/y.py"), ["other ships `kernel`", "other ships `broker`"]),
        (("mykernel/x.py", "other/kernel/x.py", "kernels.py"), []),
    ],
)
def test_distribution_that_ships_one_of_our_names_is_told(
    tmp_path: Path, names: tuple[str, ...], told: list[str]
) -> None:
    installed(tmp_path, "other", *names)
    assert list(intruders(ROOT, [str(tmp_path)])) == [f"{one} in {tmp_path}" for one in told]


def test_old_style_distribution_is_told(tmp_path: Path) -> None:
    info = tmp_path / "other-1.0.egg-info"
    info.mkdir()
    (info / "top_level.txt").write_text("kernel\nsomething\n")
    assert list(intruders(ROOT, [str(tmp_path)])) == [f"other ships `kernel` in {tmp_path}"]


def test_our_own_distribution_is_not(tmp_path: Path) -> None:
    installed(tmp_path, "pointsman", "kernel/__init__.py", "plugins/__init__.py", "broker/__init__.py")
    assert not list(intruders(tmp_path, [str(tmp_path)]))


def test_somebody_elses_folder_on_the_path_is_told(tmp_path: Path) -> None:
    """An editable install of theirs, or a package beside the script."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/__init__.py").touch()
    assert list(intruders(ROOT, [str(tmp_path)])) == [f"`plugins` is also in {tmp_path}"]


def test_folder_that_is_no_package_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    assert not list(intruders(ROOT, [str(tmp_path), str(tmp_path / "nowhere"), ""]))


def test_command_refuses_to_start_and_says_what_to_do(tmp_path: Path) -> None:
    installed(tmp_path, "jupyter_thing", "kernel/__init__.py")
    done = subprocess.run(
        [sys.executable, "-c", "from kernel.__main__ import main; main()", "--version"],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78
    assert f"jupyter_thing ships `kernel` in {tmp_path}" in done.stderr
    assert "uninstall the other one" in done.stderr


def test_here_nobody_intrudes() -> None:
    assert not list(intruders(ROOT, sys.path))
