"""Tells on stderr how an operation goes on: a spinner on a terminal, a plain line for each change elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from kernel.cli import show
from kernel.cli.text import clean


class Progress(Protocol):
    def tell(self, text: str) -> None:
        """What is known now."""


class Silent:
    def tell(self, text: str) -> None:
        pass


class Lines:
    """One line for each change."""

    def __init__(self) -> None:
        self._last = ""

    def tell(self, text: str) -> None:
        if text != self._last:
            self._last = text
            show.note(text)


class Spinner:
    """One line that is drawn again."""

    def __init__(self, update: object) -> None:
        self._update = update

    def tell(self, text: str) -> None:
        from rich.text import Text

        if callable(self._update):
            self._update(Text(clean(text)))


@contextmanager
def open_progress(*, silent: bool) -> Iterator[Progress]:
    """Silent for `--json`, so that nothing but the document is written."""
    if silent:
        yield Silent()
    elif not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Lines()
    else:
        from rich.console import Console

        console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        with console.status("") as status:
            yield Spinner(status.update)
