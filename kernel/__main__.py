"""Starts the command line, once it is sure that nobody else ships `kernel`, `plugins` or `broker`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

OURS = ("kernel", "plugins", "broker")
MISCONFIGURED = 78


def intruders(root: Path, search_path: Iterable[str]) -> Iterator[str]:
    """Tells who else on the search path ships one of our import names.

    Reads `RECORD` and `top_level.txt` itself: `importlib.metadata` would cost more than the rest of a command's
    start, and does not see editable installs, which show only as folders on the path.
    """
    for folder in dict.fromkeys(Path(entry or ".").absolute() for entry in search_path):
        if not folder.is_dir():
            continue
        for info in (*folder.glob("*.dist-info"), *folder.glob("*.egg-info")):
            distribution = info.name.rpartition(".")[0].partition("-")[0]
            if distribution.lower() != "pointsman":
                yield from (f"{distribution} ships `{name}` in {folder}" for name in _shipped(info))
        if folder != root:
            yield from (f"`{name}` is also in {folder}" for name in OURS if _importable(folder, name))


def _importable(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _shipped(info: Path) -> Iterator[str]:
    try:
        record = "\n" + (info / "RECORD").read_text(encoding="utf-8")
    except OSError:
        record = ""
    try:
        top_level = (info / "top_level.txt").read_text(encoding="utf-8").split()
    except OSError:
        top_level = []
    for name in OURS:
        if name in top_level or f"\n{name}/" in record or f"\n{name}.py," in record:
            yield name


def main() -> None:
    found = list(dict.fromkeys(intruders(Path(__file__).resolve().parent.parent, sys.path)))
    if found:
        print(
            "error: pointsman needs the import names kernel, plugins and broker for itself, but "
            + "; ".join(found)
            + ". Install pointsman into an environment of its own, or uninstall the other one.",
            file=sys.stderr,
        )
        sys.exit(MISCONFIGURED)
    from kernel.cli import main as command_line

    sys.exit(command_line())


if __name__ == "__main__":
    main()
