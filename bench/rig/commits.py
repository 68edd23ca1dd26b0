"""The floor of everything durable here: bare sqlite3, so many rows of 250 bytes in one commit, WAL, FULL."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from bench.rig.report import median
from kernel import SYSTEM

TEXT = "x" * 250


def commit_time(directory: Path, rows: int, seconds: float) -> float:
    """The median of one transaction, in seconds."""
    connection = sqlite3.connect(directory / f"floor-{time.monotonic_ns()}.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE floor (id TEXT PRIMARY KEY, text TEXT NOT NULL)")
    times: list[float] = []
    until = time.perf_counter() + seconds
    while (before := time.perf_counter()) < until:
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(rows):
            connection.execute("INSERT INTO floor VALUES (?, ?)", (SYSTEM.uuid7(), TEXT))
        connection.execute("COMMIT")
        times.append(time.perf_counter() - before)
    connection.close()
    return median(times)
