"""The file that a hub keeps its database in: one hub at a time, and opened with what a durable commit needs."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from pathlib import Path
from typing import Literal

from kernel import Misconfigured
from plugins.storage.sqlite.faults import unusable

log = logging.getLogger(__name__)

Synchronous = Literal["FULL", "NORMAL"]
STATEMENTS = 512
"""How many prepared statements a connection keeps: all of ours."""


class Joined(sqlite3.Connection):
    """A connection whose transactions begin and end by statement only: SQLAlchemy on top of it commits nothing."""

    def commit(self) -> None:
        """Nothing: the writer commits."""

    def rollback(self) -> None:
        """Nothing: the writer rolls back."""


class Lock:
    """A lock on the file beside the database; held by the process, gone with it however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = Path(f"{path}.lock")
        self._file = self._opened(path)
        self._held = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            known = f" (process {holder})" if holder else ""
            raise Misconfigured(
                f"the database {path} is in use by another hub{known}: SQLite serves one hub at a time; "
                "stop that one, or give this one its own file with `--set plugins.sqlite.path=…`"
            ) from fault
        self._sign(path)

    def _opened(self, path: Path) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            raise unusable(str(path), fault) from fault

    def _sign(self, path: Path) -> None:
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError as fault:
            os.close(self._file)
            raise unusable(str(path), fault) from fault

    def release(self) -> None:
        if self._held:
            self._held = False
            os.close(self._file)


def prepared(path: str) -> Path:
    """The file's real place; a directory that is missing is made, for its owner only.

    Raises: Misconfigured.
    """
    place = Path(path).expanduser()
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = place.resolve()
        if place.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(None, "this user may not write it")
    except OSError as fault:
        raise unusable(path, fault) from fault
    return place


def connect_writer(path: Path, synchronous: Synchronous, busy: float) -> Joined:
    path.touch(mode=0o600)  # what it holds is nobody else's affair; SQLite gives its other files the same mode
    connection = _connected(f"file:{_escaped(path)}?mode=rwc", busy)
    try:
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise Misconfigured(f"the database {path} cannot use a write-ahead log: keep it on a local disk")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except BaseException:
        connection.close()
        raise
    if synchronous == "NORMAL":
        log.warning("synchronous = NORMAL: what was acknowledged last is NOT durable, a power cut may lose it")
    return connection


def connect_reader(path: Path, busy: float) -> Joined:
    connection = _connected(f"file:{_escaped(path)}?mode=ro", busy)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connected(uri: str, busy: float) -> Joined:
    connection = sqlite3.connect(
        uri,
        uri=True,
        factory=Joined,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENTS,
        timeout=busy,
    )
    try:
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
