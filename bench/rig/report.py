"""Tells what was measured: a table for people, JSON for programs, the machine beside both."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sqlite3
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

Value = float | int | str


class Table:
    """Rows of one kind. What a figure is divided by stands in the same table, measured in the same run."""

    def __init__(self, title: str, *columns: str, note: str = "") -> None:
        self.title = title
        self.columns = columns
        self.note = note
        self.rows: list[tuple[Value, ...]] = []

    def add(self, *values: Value) -> None:
        assert len(values) == len(self.columns), f"{self.title}: {len(values)} values, {len(self.columns)} columns"
        self.rows.append(values)

    def rich(self) -> RichTable:
        shown = RichTable(title=self.title, caption=self.note or None, title_justify="left", caption_justify="left")
        for number, column in enumerate(self.columns):
            shown.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            shown.add_row(*(text(value) for value in row))
        return shown

    def plain(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}


def text(value: Value) -> str:
    """Three digits that count, and no more than are there."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percentile(values: Sequence[float], percent: int) -> float:
    """Of at least one value; the nearest one that was seen."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _busy() -> tuple[float, float, float]:
    """Now, and the processor seconds that everybody and that this script with its ended children have used."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9] if Path("/proc/stat").exists() else ["0"] * 8
    user, nice, system, _, _, irq, soft, _ = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields)
    ours = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.monotonic(), user + nice + system + irq + soft, ours


_AT_START = _busy()


def machine() -> dict[str, Value]:
    """What the figures depend on, and nothing that names this very machine."""
    since, all_before, ours_before = _AT_START
    now, everybody, ours = _busy()
    others = (everybody - all_before - (ours - ours_before)) / max(now - since, 0.001)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count() or 0,
        "memory GiB": round(memory / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "cores busy with other things meanwhile": round(max(0.0, others), 2),
    }


def tell(chosen: argparse.Namespace, *tables: Table) -> None:
    """Print them; called when everything that was started has ended."""
    facts = machine()
    if chosen.json:
        json.dump({"machine": facts, "tables": [table.plain() for table in tables]}, sys.stdout, indent=1)
        print()
        return
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), style="dim", highlight=False)
    for table in tables:
        console.print(table.rich())
