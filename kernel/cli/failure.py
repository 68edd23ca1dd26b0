"""How a command says that it failed: what is wrong, what to do about it, and the exit status."""

from __future__ import annotations

from typing import IO, Any

import click

from kernel.cli.exits import Exit
from kernel.cli.text import clean


class CommandFailed(click.ClickException):
    """Ends a command. `document` is the hub's own JSON about it, which `--json` prints; None when there is none."""

    def __init__(self, message: str, status: Exit, *, fix: str | None = None, document: Any = None) -> None:
        super().__init__(message)
        self.exit_code = int(status)  # type: ignore[misc]
        self.fix = fix
        self.document = document

    @property
    def code(self) -> str:
        """The code of the hub's error; empty when it is not the hub that refused."""
        error = self.document.get("error") if isinstance(self.document, dict) else None
        return str(error.get("code") or "") if isinstance(error, dict) else ""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {clean(self.message)}", file=file, err=file is None)
        if self.fix:
            click.echo(f"       {clean(self.fix)}", file=file, err=file is None)


def innermost(fault: BaseException) -> BaseException:
    """Task groups wrap what ended them: the reason itself, the first where there are several."""
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    return fault


class Unreachable(CommandFailed):
    """Nobody took the request: it was never sent."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message, Exit.NO_HUB, fix=fix)


class Broken(CommandFailed):
    """The request left, and no answer came: whether it was obeyed is not known."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.NO_HUB, fix="is the hub well? Look at its log, or at /healthz and /readyz")


class Cut(Broken):
    """The connection broke before an answer came."""
