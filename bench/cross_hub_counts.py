"""What a call through the wrong hub asks of PostgreSQL: statements, commits and NOTIFYs of each call, one at a time and
64 at once; how many of its updates touch no index (HOT); how often a table that grows was read from end to end; and how
many connections listen. What hubs ask anyway (beats, probes, sweeps) is counted while nobody calls and taken off.

The floor is what the design needs: three commits and two NOTIFYs for a call alone, less of each where calls share them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import anyio
import msgspec

from bench.cross_hub import MANY, asked
from bench.rig import cluster, report
from bench.rig.caller import closed_loop

SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "off"}
SETTLES = 1.5
"""Seconds after which every backend has told what it did."""
NEEDED = {"commits": 3, "NOTIFYs": 2}
COUNT = """
SELECT sum(calls) FILTER (WHERE query NOT LIKE '%pg_notify%'),
       sum(calls) FILTER (WHERE query ~ '(INSERT INTO|UPDATE|DELETE FROM) '),
       sum(calls) FILTER (WHERE query LIKE '%pg_notify%')
FROM pg_stat_statements JOIN pg_database ON pg_database.oid = dbid WHERE datname = current_database()
"""
TABLES = """
SELECT sum(n_tup_upd), sum(n_tup_hot_upd), sum(seq_scan) FILTER (WHERE relname <> 'hub_nodes') FROM pg_stat_user_tables
"""
"""`hub_nodes` is as long as there are hubs and is read from end to end with each call; the others grow with use."""
LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pointsman%listen%'"


class Counts(msgspec.Struct, frozen=True):
    """Since the server's start."""

    statements: float
    writing: float
    notifies: float
    updates: float
    hot: float
    scans: float

    def since(self, before: Counts, seconds: float = 0.0, idle: Counts | None = None) -> Counts:
        """What was counted meanwhile, without `seconds` of what is counted each second while nobody calls."""
        names = self.__struct_fields__
        return Counts(
            *(
                max(0.0, getattr(self, name) - getattr(before, name) - seconds * (getattr(idle, name) if idle else 0))
                for name in names
            )
        )

    def each(self, count: float) -> Counts:
        return Counts(*(getattr(self, name) / count for name in self.__struct_fields__))


async def counted(hubs: cluster.Cluster) -> Counts:
    await anyio.sleep(SETTLES)
    return Counts(*(float(cell or 0) for row in (*hubs.sql(COUNT), *hubs.sql(TABLES)) for cell in row))


async def measure(chosen: argparse.Namespace, step: report.Step, directory: Path) -> list[report.Table]:
    table = report.Table(
        "what a call through the wrong hub asks of PostgreSQL",
        *("call", "at once", "calls", "statements", "commits", "NOTIFYs", "updates", "HOT share", "seq scans"),
        note="of each call, without what idle hubs ask; a commit is a statement that writes. Needed by a call alone: "
        + ", ".join(f"{count} {name}" for name, count in NEEDED.items()),
    )
    async with (
        cluster.postgres(SETTINGS) as server,
        cluster.clustered(directory, server, hubs=chosen.hubs) as hubs,
        cluster.world(hubs, MANY, directory) as (agents, _, entry),
    ):
        hubs.sql("CREATE EXTENSION pg_stat_statements")
        await closed_loop(entry.address, asked(entry, agents, "start"), 1.0)
        step("nobody calls")
        before = await counted(hubs)
        await anyio.sleep(chosen.seconds)
        idle = (await counted(hubs)).since(before).each(chosen.seconds + SETTLES)
        for callers in (1, MANY):
            for verb in ("has-prompt", "start"):
                step(f"{verb}, {callers} at once")
                before = await counted(hubs)
                calls = await closed_loop(entry.address, asked(entry, agents[:callers], verb), chosen.seconds)
                count = len(calls.timed)
                one = (await counted(hubs)).since(before, chosen.seconds + SETTLES, idle).each(count)
                share = one.hot / one.updates if one.updates else 0.0
                table.add(
                    verb, callers, count, one.statements, one.writing, one.notifies, one.updates, share, one.scans
                )
        idling = report.Table(
            "what hubs ask while nobody calls, each second",
            *("hubs", "statements", "commits", "NOTIFYs", "seq scans", "connections that listen"),
        )
        listening = int(hubs.sql(LISTENING)[0][0])
        idling.add(chosen.hubs, idle.statements, idle.writing, idle.notifies, idle.scans, listening)
    return [table, idling]


async def run(chosen: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=chosen.directory) as made, report.progress(5) as step:
        tables = await measure(chosen, step, Path(made))
    report.tell(chosen, *tables)


if __name__ == "__main__":
    parser = report.arguments(__doc__, seconds=4.0)
    parser.add_argument("--hubs", type=int, default=2, help="two take part, the others only listen [default: 2]")
    anyio.run(run, parser.parse_args(), backend_options={"use_uvloop": True})
