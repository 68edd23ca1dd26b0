"""Writes docs/reference/ from the code, so that the pages cannot tell anything else than the code does.

`python -m docs.generate` writes the pages; with `--check` it writes nothing, names those that are not current and
exits 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from docs.generator import commands, errors, hooks, settings, values

REFERENCE = Path(__file__).parent / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings.settings,
    "commands.md": commands.commands,
    "exit-codes.md": errors.exit_codes,
    "errors.md": errors.error_codes,
    "hooks.md": hooks.hooks,
    "values.md": values.values,
}


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    stale = [name for name, write in PAGES.items() if not _current(REFERENCE / name, write(), check)]
    if not check:
        return 0
    for name in stale:
        print(f"docs/reference/{name} is not current: run `python -m docs.generate`", file=sys.stderr)
    return 1 if stale else 0


def _current(path: Path, text: str, check: bool) -> bool:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return True
    if not check:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
