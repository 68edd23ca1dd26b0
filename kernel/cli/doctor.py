"""`pointsman doctor`: everything that would keep a hub from starting, or from being ready, found beforehand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kernel.cli import show
from kernel.cli.exits import Exit
from kernel.cli.options import json_option
from kernel.cli.plugins import configured

if TYPE_CHECKING:
    from kernel.config import Settings
    from kernel.finding import Finding
    from kernel.loader import Loaded

ANSWERS_WITHIN = 5.0
"""Seconds for a hub that may run here."""


@click.command()
@configured
@json_option
def command(config: Path | None, assignments: tuple[str, ...], as_json: bool) -> Exit:
    """Look at a configuration, its plugins, its database and the hub that may run here; nothing is changed.

    Each line says ok, warn or fail, and what to change. Exit status: 0 a hub would start, 78 it would not.
    """
    import anyio

    from kernel.finding import Level

    found = anyio.run(_found, config, assignments)
    good = all(finding.level is not Level.FAIL for finding in found)
    if as_json:
        rows = [{"check": one.check, "level": one.level, "told": one.told, "fix": one.fix or None} for one in found]
        show.document({"ok": good, "findings": rows})
    else:
        show.table(("", "CHECK", "FOUND"), [(one.level.value, one.check, str(one)) for one in found])
    return Exit.DONE if good else Exit.MISCONFIGURED


async def _found(config: Path | None, assignments: tuple[str, ...]) -> list[Finding]:
    """In the order of a start. What does not even load has no database to look at."""
    from kernel.errors import Misconfigured
    from kernel.loader import checked_settings, load

    try:
        settings = checked_settings(config, list(assignments))
        loaded = load(settings)
    except Misconfigured as wrong:
        mistakes = (wrong.details or {}).get("mistakes", [wrong.message])
        return [_finding("configuration", mistake, failed=True) for mistake in mistakes]
    found = [_finding("configuration", "can be read"), _finding("plugins", f"{len(loaded.rows())} fit")]
    return [*found, *_secret(), *await _plugins(loaded, settings), *await _hub()]


def _finding(check: str, told: str, *, failed: bool = False, fix: str = "") -> Finding:
    from kernel.finding import Finding, Level

    return Finding(check=check, level=Level.FAIL if failed else Level.OK, told=told, fix=fix)


def _secret() -> list[Finding]:
    """Whether one is needed is the backend's to say; one that is given has to be good."""
    from kernel.errors import Misconfigured
    from kernel.keyring import Keyring

    given = os.environ.get("SESSION_SECRET")
    if given is None:
        return []
    try:
        Keyring(given)
    except Misconfigured as short:
        return [_finding("secret", short.message, failed=True)]
    return [_finding("secret", "SESSION_SECRET is set: all hubs of one database need the same")]


async def _plugins(loaded: Loaded, settings: Settings) -> list[Finding]:
    """What the plugins found, and which of them could not look."""
    answers = await loaded.hooks.diagnose.gather(settings)
    failed = [row for row in loaded.hooks.stats() if row.hook == "diagnose" and row.faults]
    broken = [_finding(f"plugin {row.plugin}", f"could not look: it {row.last_fault}", failed=True) for row in failed]
    return [finding for answer in answers for finding in answer.value] + broken


async def _hub() -> list[Finding]:
    """Whether the hub is ready that environment and working directory name; none has to be there."""
    from kernel.cli.client import open_hub
    from kernel.cli.failure import CommandFailed
    from kernel.finding import Finding, Level

    try:
        async with open_hub() as hub:
            answer = await hub.send("GET", "/readyz", root="", within=ANSWERS_WITHIN)
    except CommandFailed:
        return [_finding("hub", "none answers here")]
    if answer.status == 200:
        bus = (answer.document or {}).get("bus")
        return [_finding("hub", f"{hub.url} is ready" + (f", its signal bus is {bus}" if bus else ""))]
    checks = ((answer.error or {}).get("details") or {}).get("checks") or {"ready": f"answered {answer.status}"}
    return [Finding(check=f"hub {name}", level=Level.WARN, told=f"{hub.url}: {told}") for name, told in checks.items()]
