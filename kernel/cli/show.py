"""Shows documents, tables and fields: rich on a terminal, plain aligned text on a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from kernel.cli.text import clean, width

STYLES = {
    **dict.fromkeys(("running", "done", "online"), "green"),
    **dict.fromkeys(("failed", "error", "expired", "crashed", "offline"), "red"),
    **dict.fromkeys(
        ("pending", "in_progress", "provisioning", "cloning", "starting", "stopping", "degraded"), "yellow"
    ),
    **dict.fromkeys(("stopped", "cancelled", "-"), "dim"),
}
"""A cell that is just one of these words is shown in its colour."""
NONE = "-"
Cell = Any


def document(value: Any) -> None:
    """The one JSON document of `--json`."""
    _print(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """One line of the result."""
    _print(clean(text))


def block(text: str) -> None:
    """Lines that others wrote, as they are; the last one gets its line end."""
    if text:
        _print(text.removesuffix("\n"))


def note(text: str) -> None:
    """One line beside the result, on stderr."""
    _print(clean(text), err=True)


def _print(text: str, *, err: bool = False) -> None:
    # A locale that cannot show a character, or a lone surrogate, must not end the command.
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # Colours are left alone: what must not reach a terminal was taken out before.
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err, color=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Rows of cells under headings. A heading alone is shown when there are no rows."""
    shown = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headings, shown)
    else:
        _plain_table([list(headings), *shown])


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        drawn.add_column(Text(heading), no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(value, style=STYLES.get(value, "")) for value in row))
    _console(_natural_width([list(headings), *rows])).print(drawn)


def _natural_width(rows: Sequence[Sequence[str]]) -> int:
    """Nothing is folded or cut to fit the terminal: an id that wraps there can still be copied whole."""
    return sum(max(width(row[n]) for row in rows) + 2 for n in range(len(rows[0])))


def _console(columns: int | None = None) -> Any:
    from rich.console import Console

    return Console(width=columns, markup=False, highlight=False, emoji=False)


def _plain_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(width(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        cells = (value + " " * (widest - width(value)) for value, widest in zip(row, widths, strict=True))
        _print("  ".join(cells).rstrip())


def fields(title: str, pairs: Sequence[tuple[str, Cell]]) -> None:
    """A title, if any, and its named values; those that are None are left out."""
    shown = [(name, cell(value)) for name, value in pairs if value is not None]
    widest = max((width(name) for name, _ in shown), default=0)
    if not sys.stdout.isatty():
        if title:
            say(title)
        for name, value in shown:
            _print(f"  {name.ljust(widest)}  {value}")
        return
    from rich.text import Text

    console = _console()
    if title:
        console.print(Text(clean(title), style="bold"), soft_wrap=True)
    for name, value in shown:
        line = Text.assemble("  ", (name.ljust(widest), "dim"), "  ", (value, STYLES.get(value, "")))
        console.print(line, soft_wrap=True)


def labels(value: dict[str, str] | None) -> str | None:
    """`floor=top, zone=eu`; None where there are none."""
    return ", ".join(f"{name}={label}" for name, label in (value or {}).items()) or None


def cell(value: Cell) -> str:
    """A value as one line of text."""
    if value is None or value == "" or value == [] or value == {}:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict | list):
        return clean(json.dumps(value, ensure_ascii=False))
    return str(value)


# -- times -----------------------------------------------------------------------------------------------------


def instant(text: Any) -> datetime | None:
    """RFC 3339 as the hub writes it; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def clock_time(text: Any) -> str | None:
    """Local date and time with milliseconds; None where there is no time."""
    read = instant(text)
    if read is None:
        return clean(text) if isinstance(text, str) else None
    return read.astimezone().isoformat(sep=" ", timespec="milliseconds")


def age(text: Any, now: datetime | None = None) -> str:
    """How long ago (or how far ahead), to the one unit that matters."""
    read = instant(text)
    if read is None:
        return NONE
    seconds = ((now or datetime.now(UTC)) - read).total_seconds()
    told = duration(abs(seconds))
    return f"{told} ago" if seconds >= 0 else f"in {told}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for size, unit, limit in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172_800)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
