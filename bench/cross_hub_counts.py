"""What a call through the wrong hub asks of PostgreSQL: statements, commits and NOTIFYs of each call, one at a time and
64 at once; what became of each table's rows meanwhile, how many updates touched no index (HOT), and how often a table
was read from end to end; and how many connections listen. The statements that hubs make anyway (beats, probes, sweeps)
are counted while nobody calls and taken off.

The floor is what the design needs: three commits and two NOTIFYs for a call alone, less of each where calls share them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import anyio

from bench.cross_hub import MANY, asked
from bench.rig import cluster, report, script
from bench.rig.caller import closed_loop

SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "off"}
SETTLES = 11.0
"""Seconds after which every connection has told what it did to the tables: an idle one does within 10. Statements are
counted at once."""
STATEMENTS = """
SELECT sum(calls) FILTER (WHERE query NOT LIKE '%pg_notify%'),
       sum(calls) FILTER (WHERE query ~ '(INSERT INTO|UPDATE|DELETE FROM) '),
       sum(calls) FILTER (WHERE query LIKE '%pg_notify%')
FROM pg_stat_statements JOIN pg_database ON pg_database.oid = dbid WHERE datname = current_database()
"""
TABLES = "SELECT relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, seq_scan FROM pg_stat_user_tables ORDER BY relname"
LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pointsman%listen%'"


class Statements(NamedTuple):
    """Since the server's start, or between two moments; or of each call, or of each second."""

    all: float
    writing: float
    notifies: float

    def less(self, others: Statements, times: float = 1.0) -> Statements:
        return Statements(*(one - other * times for one, other in zip(self, others, strict=True)))

    def each(self, count: float) -> Statements:
        return Statements(*(one / count for one in self))


def statements(hubs: cluster.Cluster) -> Statements:
    return Statements(*(float(cell or 0) for cell in hubs.sql(STATEMENTS)[0]))


async def tables(hubs: cluster.Cluster) -> dict[str, list[int]]:
    """Table → rows inserted, rows updated, of them HOT, reads from end to end."""
    await anyio.sleep(SETTLES)
    return {name: [int(cell or 0) for cell in cells] for name, *cells in hubs.sql(TABLES)}


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    async with (
        cluster.postgres(SETTINGS) as server,
        cluster.clustered(directory, server, hubs=chosen.hubs) as hubs,
        cluster.world(hubs, MANY, directory) as (agents, _, entry),
    ):
        hubs.sql("CREATE EXTENSION pg_stat_statements")
        await closed_loop(entry.address, asked(entry, agents, "start"), 1.0)
        step("nobody calls")
        began = await tables(hubs)
        before = statements(hubs)
        await anyio.sleep(chosen.seconds)
        idle = statements(hubs).less(before).each(chosen.seconds)
        made = report.Table(
            "what a call through the wrong hub asks of PostgreSQL",
            *("call", "at once", "calls", "statements", "commits", "NOTIFYs"),
            note="of each call; a commit is a statement that writes; needed by a call alone: 3 commits, 2 NOTIFYs",
        )
        total = 0
        for callers in (1, MANY):
            for verb in ("has-prompt", "start"):
                step(f"{verb}, {callers} at once")
                before = statements(hubs)
                calls = await closed_loop(entry.address, asked(entry, agents[:callers], verb), chosen.seconds)
                count = len(calls.timed)
                made.add(verb, callers, count, *statements(hubs).less(before).less(idle, calls.seconds).each(count))
                total += count
        step("tables")
        return [made, _rows(began, await tables(hubs), total), _idle(hubs, idle)]


def _rows(before: dict[str, list[int]], after: dict[str, list[int]], calls: int) -> report.Table:
    table = report.Table(
        f"the tables' rows in these {calls:,} calls",
        *("table", "inserted by a call", "updated by a call", "HOT share", "reads from end to end by a call"),
        note="with what hubs do anyway; hub_nodes has a row for each hub",
    )
    for name, counts in after.items():
        inserted, updated, hot, scans = (now - then for now, then in zip(counts, before[name], strict=True))
        if inserted or updated or scans:
            table.add(name, inserted / calls, updated / calls, hot / updated if updated else "-", scans / calls)
    return table


def _idle(hubs: cluster.Cluster, idle: Statements) -> report.Table:
    table = report.Table(
        "what hubs ask while nobody calls, each second",
        *("hubs", "statements", "commits", "NOTIFYs", "connections that listen"),
    )
    table.add(len(hubs.hubs), *idle, int(hubs.sql(LISTENING)[0][0]))
    return table


if __name__ == "__main__":
    parser = script.arguments(__doc__, seconds=4.0)
    parser.add_argument("--hubs", type=int, default=2, help="two take part, the others only listen [default: 2]")
    script.run(measure, parser.parse_args(), steps=6)
