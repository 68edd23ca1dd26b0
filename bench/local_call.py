"""The LOCAL call: through the hub and its socket to a broker that answers at once, beside the same route doing nothing.

The bare route is a hub of its own with the same server, gate and plugins, whose responder answers at once
(`bench/rig/bare.py`). A second floor holds what no LOCAL call can do without: one frame there and back through a
socket of the bare hub, and one bare commit. Hub, bare hub, brokers and callers are processes of their own; the three
are measured by turns.
Also counted: the statements that the database's writer ran between a call and the arrival of its frame.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.rig import report, script
from bench.rig.caller import Calls, Timed, closed_loop, request
from bench.rig.children import Child, child
from bench.rig.commits import commit_time
from bench.rig.hub import Hub, serving
from bench.rig.trace import FILE

CALLERS = (1, 16, 64)
ROUNDS = 3
TARGET = 3.0
COUNTED = 200
"""Calls whose statements are counted."""


@asynccontextmanager
async def answering(hub: Hub, directory: Path) -> AsyncIterator[tuple[str, Child]]:
    """The id and the process of a connected broker that answers at once."""
    identity = await hub.register_broker("answering")
    with child("bench.rig.answering", cwd=directory, asked=True) as broker:
        await broker.ask({"url": hub.url, **identity})
        yield identity["id"], broker


@asynccontextmanager
async def world(hub: Hub, agents: int, directory: Path) -> AsyncIterator[tuple[list[str], Child]]:
    """Agents that run on such a broker, and its process."""
    async with answering(hub, directory) as (broker_id, broker):
        yield await hub.agents(broker_id, agents), broker


def starts(hub: Hub, agents: list[str], verb: str = "start") -> list[bytes]:
    """One caller for each agent."""
    return [request(f"/api/v1/agents/{agent}/{verb}", hub.token) for agent in agents]


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    counted = await count(step, directory)
    return [await _calls(chosen, step, directory), counted]


async def _calls(chosen: argparse.Namespace, step: script.Step, directory: Path) -> report.Table:
    table = report.Table(
        "LOCAL call: POST …/start, answered by the broker at once",
        *("callers", "bare p50 ms", "+ socket p50 ms", "commit ms", "call p50 ms", "call p99 ms"),
        *("bare/s", "calls/s", "p50 × bare", "p50 × (socket + commit)"),
        note=f"target: p50 ≤ {TARGET:g} × the bare route at 1 caller; commit: one bare row, synchronous = FULL",
    )
    async with (
        serving(directory / "bare", bare=True) as bare,
        serving(directory / "hub") as hub,
        answering(bare, directory),
        world(hub, max(CALLERS), directory) as (agents, _),
    ):
        commit = commit_time(directory, 1, 1.0) * 1000
        for callers in CALLERS:
            step(f"LOCAL call, {callers} at once")
            some = agents[:callers]
            kinds = ((bare, starts(bare, some)), (bare, starts(bare, some, "stop")), (hub, starts(hub, some)))
            rounds = [
                [await closed_loop(one.address, asked, chosen.seconds / ROUNDS) for one, asked in kinds]
                for _ in range(ROUNDS)
            ]
            _row(table, callers, rounds, commit)
    return table


def _row(table: report.Table, callers: int, rounds: list[list[Calls]], commit: float) -> None:
    """Medians of the rounds, so that one in which the machine did something else does not count."""
    for calls in itertools.chain(*rounds):
        assert set(calls.statuses) == {200}, f"not every call was answered with 200: {calls.statuses}"

    def middle(kind: int, percent: int) -> float:
        return report.median([report.percentile(calls[kind].times, percent) * 1000 for calls in rounds])

    bare, socket, call = (middle(kind, 50) for kind in range(3))
    rates = (report.median([calls[kind].rate for calls in rounds]) for kind in (0, 2))
    table.add(callers, bare, socket, commit, call, middle(2, 99), *rates, call / bare, call / (socket + commit))


# -- what is written before the frame ------------------------------------------------------------------------------

PERIODIC = ("hub_nodes", "renewed_at", "UPDATE runtime_brokers", "WITH RECURSIVE brokers_")
"""In statements of the beat, the renewal, the sweeps and the poll: they come by the clock, not with a call."""


async def count(step: script.Step, directory: Path) -> report.Table:
    step("counting statements")
    async with (
        serving(directory / "traced", plugins=("bench.rig.trace",)) as hub,
        world(hub, 1, directory) as (agents, broker),
    ):
        await broker.ask("arrived")
        calls = await closed_loop(hub.address, starts(hub, agents), 30.0, most=COUNTED)
        arrived: dict[str, float] = await broker.ask("arrived")
    noted = json.loads((directory / "traced" / FILE).read_text())
    table = report.Table(
        f"statements on the writer's connection, {len(calls.timed)} LOCAL calls one after the other",
        *("between", "statements", "of them writes", "transactions with a write"),
        note="those of the beat, of renewals, sweeps and the poll, which come by the clock, are left out",
    )
    transactions = _transactions(noted)
    before = _between(transactions, [(call.asked_at, arrived[call.dispatch]) for call in calls.timed])
    after = _between(transactions, [(arrived[call.dispatch], call.answered_at) for call in calls.timed])
    table.add("the call and its frame's arrival", *before)
    table.add("the frame's arrival and the answer", *after)
    _check(calls.timed, before, after)
    return table


def _transactions(noted: list[tuple[float, str]]) -> list[list[tuple[float, str]]]:
    """The statements of each transaction that belongs to a call; those that share a commit stand apart."""
    found: list[list[tuple[float, str]]] = []
    for at, statement in noted:
        if statement.startswith(("BEGIN", "SAVEPOINT")) or not found:
            found.append([])
        found[-1].append((at, statement))
    return [one for one in found if not any(word in text for _, text in one for word in PERIODIC)]


def _between(transactions: list[list[tuple[float, str]]], spans: list[tuple[float, float]]) -> tuple[int, int, int]:
    """Statements, writes, and transactions with a write, in all spans together."""
    statements = writes = wrote_any = 0
    for transaction in transactions:
        inside = [text for at, text in transaction if any(start <= at <= end for start, end in spans)]
        wrote = [text for text in inside if text.startswith(("INSERT", "UPDATE", "DELETE", "WITH"))]
        statements += len(inside)
        writes += len(wrote)
        wrote_any += bool(wrote)
    return statements, writes, wrote_any


def _check(calls: list[Timed], before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
    assert len(calls) == COUNTED, f"{len(calls)} calls were counted, not {COUNTED}"
    assert after[2] == COUNTED, f"each call stores its end in one transaction; {after[2]} for {COUNTED} calls"
    assert before[1] == 0, f"{before[1]} writes before the frame left: a LOCAL call pays none (P7)"


if __name__ == "__main__":
    script.run(measure, script.arguments(__doc__, seconds=3.0).parse_args(), steps=len(CALLERS) + 1)
