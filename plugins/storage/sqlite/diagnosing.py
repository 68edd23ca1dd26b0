"""Everything that a start on this file would refuse, all of it at once and without changing anything."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from kernel import SYSTEM, Finding, Level, Misconfigured, Settings, known_secret
from plugins.storage.affairs import affairs, schema_finding
from plugins.storage.sqlite.faults import unusable
from plugins.storage.sqlite.files import connect_reader
from plugins.storage.sqlite.opening import schema_of
from plugins.storage.sqlite.sql import engine_on

PATH = "name a file that this user may write, with `config: {path: …}` of the plugin sqlite"


def diagnosed(path: str, settings: Settings) -> list[Finding]:
    """The good findings too."""
    place = Path(path).expanduser()
    found = [_writable(place), _lock(place)]
    if found[0].level is Level.FAIL or not place.exists():
        return found
    try:
        state = schema_of(path)
        found.append(schema_finding(state))
        if state.found == state.wanted:
            found.extend(_affairs(place, settings))
    except Misconfigured as fault:
        found.append(Finding(check="database", level=Level.FAIL, told=fault.message))
    return found


def _writable(place: Path) -> Finding:
    if place.is_dir():
        return Finding(check="database", level=Level.FAIL, told=f"{place} is a directory", fix=PATH)
    nearest = place if place.exists() else next(parent for parent in place.absolute().parents if parent.exists())
    if not nearest.is_dir() and nearest != place:
        return Finding(check="database", level=Level.FAIL, told=f"{nearest} is no directory", fix=PATH)
    if not os.access(nearest, os.W_OK):
        return Finding(check="database", level=Level.FAIL, told=f"this user may not write {nearest}", fix=PATH)
    return Finding(check="database", told=f"{place} can be written" if place.exists() else f"{place} will be made")


def _lock(place: Path) -> Finding:
    """A hub that runs here is no fault, and why another would not start."""
    try:
        with Path(f"{place}.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except OSError:
        fix = "stop it before you start another on this file"
        return Finding(check="lock", level=Level.WARN, told="a hub uses the file now", fix=fix)
    return Finding(check="lock", told="no hub uses the file now")


def _affairs(place: Path, settings: Settings) -> Iterator[Finding]:
    """Raises: Misconfigured."""
    try:
        connection = connect_reader(place.resolve(), 1.0)
        try:
            with engine_on(connection).connect() as joined:
                yield from affairs(joined, SYSTEM.now(), settings.node.lost_after, known_secret())
        finally:
            connection.close()
    except (sqlite3.Error, sa.exc.DBAPIError) as fault:
        raise unusable(str(place), fault) from fault
