"""What every script shares: its command line, its progress on the terminal, and the run from there to the tables."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.rig import report

Step = Callable[[str], None]
"""Says what is measured now; each call is one step of the whole."""
Measure = Callable[[argparse.Namespace, Step, Path], Awaitable[Sequence[report.Table]]]
"""With what was chosen, and a directory that goes afterwards. When it returns, what it started has ended."""


def arguments(doc: str | None, *, seconds: float | None = None) -> argparse.ArgumentParser:
    """What every script takes; `seconds` is its own default for one measurement, of a script that measures by time."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seconds is not None:
        told = f"for each measurement [default: {seconds:g}]"
        parser.add_argument("--seconds", type=float, default=seconds, help=told)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--directory", help="where the databases are made [default: the system's own]")
    return parser


def run(measure: Measure, chosen: argparse.Namespace, *, steps: int) -> None:
    """Measure on the event loop that a hub has, then tell the tables."""
    anyio.run(_run, measure, chosen, steps, backend_options={"use_uvloop": True})


async def _run(measure: Measure, chosen: argparse.Namespace, steps: int) -> None:
    with tempfile.TemporaryDirectory(dir=chosen.directory) as made, progress(steps) as step:
        tables = await measure(chosen, step, Path(made))
    report.tell(chosen, *tables)


@contextmanager
def progress(steps: int) -> Iterator[Step]:
    """A bar on the terminal's standard error; nothing where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=steps)
        begun = False

        def step(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, advance=int(begun))
            begun = True

        yield step
