"""Translates what the driver says into the kernel's words; nowhere else is a driver's error looked at."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from kernel import AlreadyExists, Invalid, Misconfigured, PointsmanError, StorageUnavailable

FULL = sqlite3.SQLITE_FULL
_WHY: dict[int, str] = {
    sqlite3.SQLITE_BUSY: "another program holds a lock on the file",
    sqlite3.SQLITE_LOCKED: "another program holds a lock on the file",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "reading or writing the file failed",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only",
    sqlite3.SQLITE_CANTOPEN: "the file, its directory or its -wal and -shm files cannot be opened",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database",
    sqlite3.SQLITE_PERM: "the file may not be opened",
    sqlite3.SQLITE_INTERRUPT: "the statement took longer than server.database_deadline",
    sqlite3.SQLITE_NOMEM: "the machine is out of memory",
}

_TAKEN = {
    "agents.project_id, agents.slug": "an agent of this name exists in this project already",
    "projects.slug": "a project of this name exists already",
    "runtime_brokers.name": "a broker of this name exists already",
    "runtime_brokers.slug": "a broker exists already whose name differs in capitals, spaces or signs only",
    "users.email": "a user with this address exists already",
}
"""What is unique, in words; the columns are as SQLite lists them."""


def translated(fault: BaseException | None) -> BaseException | None:
    """The kernel's error for a driver's; any other error as it is."""
    match fault:
        case DBAPIError():
            return _chained(translated(fault.orig), fault)
        case sqlite3.IntegrityError():
            return _chained(_integrity(fault), fault)
        case sqlite3.Error() if _primary(fault) in _WHY:
            return _chained(
                StorageUnavailable(f"the database does not work now, nothing was done: {_why(fault)}"), fault
            )
        case sqlite3.ProgrammingError() | sqlite3.InterfaceError() | OverflowError() | UnicodeEncodeError():
            return _chained(Invalid(fields={"value": f"the database cannot store it: {fault}"}), fault)
        case _:
            return fault


def unusable(path: str, fault: BaseException) -> Misconfigured:
    """Why a hub cannot start on this file."""
    if isinstance(fault, OSError):
        why = fault.strerror or str(fault)
    else:
        why = _why(fault) if isinstance(fault, sqlite3.Error) else str(fault)
    return Misconfigured(
        f"the database {path} cannot be used: {why}; give the hub a file that it may write, "
        "with `config: {path: …}` of the plugin sqlite"
    )


def _chained(translation: BaseException | None, cause: BaseException) -> BaseException | None:
    if translation is not None and translation is not cause:
        translation.__cause__ = cause
    return translation


def _integrity(fault: sqlite3.IntegrityError) -> PointsmanError:
    """Unique and foreign key are told apart: a name that is taken is no bad reference."""
    code = fault.sqlite_errorcode
    if code in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
        taken = _TAKEN.get(str(fault).partition(": ")[2], "something with this name or id exists already")
        return AlreadyExists(f"{taken}: choose another")
    if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return Invalid(fields={"reference": "names something that does not exist, or that others still refer to"})
    return Invalid(fields={"value": f"the database refuses it: {fault}"})


def _primary(fault: sqlite3.Error) -> int:
    return getattr(fault, "sqlite_errorcode", 0) & 0xFF


def _why(fault: sqlite3.Error) -> str:
    return f"{_WHY.get(_primary(fault), 'SQLite says')} ({fault})"
