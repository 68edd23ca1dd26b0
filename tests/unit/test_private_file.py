"""A private file and the directory that is made for it: their owner's only."""

from __future__ import annotations

from pathlib import Path

from kernel.private_file import write_private


def test_a_private_file_stands_in_a_private_directory(tmp_path: Path) -> None:
    path = tmp_path / "var" / "secret"
    write_private(path, b"kept")
    assert [made.stat().st_mode & 0o777 for made in (path.parent, path)] == [0o700, 0o600]


def test_a_directory_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    write_private(tmp_path / "secret", b"kept")
    assert tmp_path.stat().st_mode & 0o777 == 0o755
