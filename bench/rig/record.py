"""Runs every bench and keeps what it told: `python -m bench.rig.record [NAME]` writes `bench/results/<date>-NAME.md`.

NAME says which kind of machine it was, for instance `laptop`; the figures of two machines are not to be compared, their
ratios are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.rig.report import text

BENCH = Path(__file__).resolve().parents[1]
LIMIT = 180.0
"""Seconds for one script, which is meant to take a third of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default=f"{os.cpu_count()}-cores")
    name = parser.parse_args().name
    parts = [f"# Measured on {datetime.now(UTC):%Y-%m-%d}, {name}", ""]
    for script in sorted(BENCH.glob("*.py")):
        print(f"{script.name} …", file=sys.stderr, flush=True)
        parts += _section(script.name, _told(script))
    file = BENCH / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{name}.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(parts))
    print(file.relative_to(BENCH.parent))


def _told(script: Path) -> dict[str, Any]:
    """Raises: CalledProcessError when it failed; what it said stands on the terminal."""
    command = [sys.executable, str(script), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=LIMIT)  # noqa: S603 - our own scripts
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _section(title: str, told: dict[str, Any]) -> list[str]:
    parts = [f"## {title}", "", ", ".join(f"{name} {value}" for name, value in told["machine"].items()), ""]
    for table in told["tables"]:
        columns = list(table["rows"][0])
        parts += [f"**{table['title']}**", "", _line(columns), _line(["---"] * len(columns))]
        parts += [_line([text(value) for value in row.values()]) for row in table["rows"]]
        parts += ["", table["note"], ""] if table["note"] else [""]
    return parts


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
