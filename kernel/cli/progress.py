"""Tells on stderr how an operation goes on: a spinner on a terminal, a plain line for each change elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from kernel.cli import show
from kernel.cli.text import clean

if TYPE_CHECKING:
    from rich.status import Status


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
    """One line that is drawn again; nothing is drawn before there is something to tell."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def tell(self, text: str) -> None:
        from rich.console import Console
        from rich.text import Text

        if self._status is None:
            console = Console(stderr=True, markup=False, highlight=False, emoji=False)
            self._status = console.status(Text(clean(text)))
            self._status.start()
        self._status.update(Text(clean(text)))

    def stop(self) -> None:
        if self._status:
            self._status.stop()


@contextmanager
def open_progress(*, silent: bool) -> Iterator[Progress]:
    """Silent for `--json`, so that nothing but the document is written."""
    if silent:
        yield Silent()
    elif not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Lines()
    else:
        spinner = Spinner()
        try:
            yield spinner
        finally:
            spinner.stop()
