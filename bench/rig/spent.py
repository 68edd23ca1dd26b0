"""Processor time of processes, to the nanosecond where the kernel tells it (Linux)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bench.rig.cluster import Cluster


class Spent:
    """What each of these processes has used since this was made, in seconds; nothing for one that ended meanwhile."""

    def __init__(self, named: Mapping[int, str]) -> None:
        """`named`: pid → the name under which it is counted."""
        self._named = dict(named)
        self._before = {pid: _used(pid) for pid in self._named}

    def so_far(self) -> dict[str, float]:
        spent = dict.fromkeys(self._named.values(), 0.0)
        for pid, name in self._named.items():
            spent[name] += max(0.0, _used(pid) - self._before[pid])
        return spent


def _used(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


def everybody(cluster: Cluster, broker: int) -> dict[int, str]:
    """The hubs, in the order of their roles, all that belongs to the server, the broker, and the callers here."""
    names = {int(row[0]): "PostgreSQL" for row in cluster.sql("SELECT pid FROM pg_stat_activity")}
    owner, entry = cluster.hubs[:2]
    return {
        **names,
        cluster.server.pid: "PostgreSQL",
        entry.pid: "hub of the call",
        owner.pid: "hub of the broker",
        broker: "broker",
        os.getpid(): "callers",
    }
