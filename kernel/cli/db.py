"""`pointsman db`: which schema the database has, and bringing it to that of this program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from kernel.cli import show
from kernel.cli.exits import Exit
from kernel.cli.options import json_option
from kernel.cli.plugins import configured

if TYPE_CHECKING:
    from kernel.config import Settings
    from kernel.loader import Loaded
    from kernel.storage import SchemaState

T = TypeVar("T")
PATIENCE = 10.0
"""Seconds for closing a backend."""


@click.group()
def command() -> None:
    """Migrate and check the database. A hub migrates by itself when it starts."""


@command.command("check")
@configured
@json_option
def check(config: Path | None, assignments: tuple[str, ...], as_json: bool) -> Exit:
    """Tell which schema the database has; nothing is changed, and a hub may be using it.

    Exit status: 0 up to date, 1 a migration is missing, 78 it was written by a later version.
    """
    state = _run(config, assignments, _state)
    if as_json:
        show.document({"schema": state.found, "wanted": state.wanted, "upToDate": state.found == state.wanted})
    else:
        show.say(_sentence(state))
    if not state.known:
        return Exit.MISCONFIGURED
    return Exit.DONE if state.found == state.wanted else Exit.ENDED_BADLY


@command.command("migrate")
@configured
@json_option
def migrate(config: Path | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """Bring the database to the schema of this program, as the start of a hub does."""
    before, after = _run(config, assignments, _migrated)
    if as_json:
        show.document({"before": before, "schema": after})
    elif before == after:
        show.say(f"the database has schema {after}: nothing was missing")
    else:
        show.say(f"the database has schema {after} now, before it had {before or 'none'}")


def _sentence(state: SchemaState) -> str:
    if state.found is None:
        return f"the database has no schema yet: `pointsman db migrate`, or the start of a hub, makes {state.wanted}"
    if not state.known:
        return (
            f"the database has schema {state.found}, which a later version of this program wrote (this one knows "
            f"up to {state.wanted}): no hub of this version starts on it"
        )
    if state.found != state.wanted:
        return f"the database has schema {state.found}: `pointsman db migrate` brings it to {state.wanted}"
    return f"the database has schema {state.found}: up to date"


def _run(config: Path | None, assignments: tuple[str, ...], body: Callable[[Loaded, Settings], Awaitable[T]]) -> T:
    import anyio

    from kernel.loader import checked_settings, load

    settings = checked_settings(config, list(assignments))
    return anyio.run(body, load(settings), settings)


async def _state(loaded: Loaded, settings: Settings) -> SchemaState:
    """Raises: Misconfigured when the backend cannot tell."""
    from kernel.errors import Misconfigured

    answer = await loaded.hooks.check_storage.ask(settings)
    if answer is None:
        raise Misconfigured("this backend cannot tell its schema without being opened: `pointsman db migrate` opens it")
    return answer.value


async def _migrated(loaded: Loaded, settings: Settings) -> tuple[str | None, str]:
    import anyio

    from kernel.clock import SYSTEM
    from kernel.node import NodeId

    answer = await loaded.hooks.check_storage.ask(settings)
    storage = await loaded.open_storage(settings, NodeId(SYSTEM.uuid4()))
    try:
        return (answer.value.found if answer else None), await storage.schema_version()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(PATIENCE):
            await storage.close()
