"""Durable records on SQLite at 1, 16 and 64 callers, beside the floor of a bare insert and commit on the same disk.

Usage: python bench/storage_sqlite.py [--seconds 3] [--history 100000] [--backlog 10000]
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console
from rich.table import Table

from kernel import (
    SYSTEM,
    Agent,
    AgentId,
    BrokerRegistration,
    ClaimRequest,
    End,
    IntentId,
    Message,
    NewIntent,
    Node,
    NodeId,
    Op,
    Phase,
    Project,
    Recording,
    Session,
    SessionClaim,
    SessionId,
    State,
    lane_of,
)
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage

TEXT = "x" * 250
Timed = Callable[[], Awaitable[object]]


class World:
    """One hub, one broker that it holds, agents that run."""

    def __init__(self, storage: SqliteStorage) -> None:
        self.storage = storage
        self.node = NodeId(SYSTEM.uuid4())
        self.session: Session
        self.project = SYSTEM.uuid4()
        self.agents: list[Agent] = []

    async def build(self, agents: int) -> None:
        now = SYSTEM.now()
        await self.storage.join_node(Node(id=self.node, started_at=now, beat_at=now, version="bench"))
        await self.storage.create_project(Project(id=self.project, name="bench", slug="bench"), None)
        registered = await self.storage.register_broker(
            BrokerRegistration(
                broker_id=SYSTEM.uuid4(),  # type: ignore[arg-type]
                name="bench",
                slug="bench",
                created_by="bench",
                token_id=SYSTEM.uuid4(),
                token_hash=SYSTEM.uuid4(),
                token_lives=60.0,
            )
        )
        claim = SessionClaim(broker_id=registered.broker.id, node_id=self.node, session_id=SessionId(SYSTEM.uuid4()))
        self.session = (await self.storage.claim_session(claim)).session
        for number in range(agents):
            agent = Agent(
                id=AgentId(SYSTEM.uuid7()),
                slug=f"agent-{number}",
                name=f"agent {number}",
                project_id=self.project,
                phase=Phase.RUNNING,
                runtime_broker_id=registered.broker.id,
            )
            await self.storage.record(Recording(agent=agent))
            self.agents.append(agent)

    def message(self, number: int) -> NewIntent:
        agent = self.agents[number % len(self.agents)]
        intent = self.intent(Op.MESSAGE, agent)
        said = Message(id=intent.id, project_id=self.project, sender="bench", recipient=agent.slug, msg=TEXT)
        return _with(intent, said)

    def intent(self, op: Op, agent: Agent) -> NewIntent:
        return NewIntent(
            id=IntentId(SYSTEM.uuid7()),
            op=op,
            lane=lane_of(op),
            broker_id=self.session.broker_id,
            agent_id=agent.id,
            agent_slug=agent.slug,
            project_id=self.project,
            deadline_in=86_400.0,
            route="forward",
            principal="user:bench",
            request_id="bench",
            node_id=self.node,
        )

    async def cycle(self, limit: int) -> int:
        """Claim what waits and end it; how many there were."""
        claims = await self.storage.claim(ClaimRequest(session=self.session, limit=limit, ops=frozenset(Op)))
        async with anyio.create_task_group() as tasks:
            for intent in claims.intents:
                tasks.start_soon(
                    self.storage.end,
                    End(
                        intent_id=intent.id,
                        op=intent.op,
                        state=State.DONE,
                        session=self.session,
                        attempt=intent.attempts,
                        reason="answered",
                        agent_id=AgentId(intent.agent_id),
                    ),
                )
        return len(claims.intents)


def _with(intent: NewIntent, said: Message) -> NewIntent:
    import msgspec

    return msgspec.structs.replace(intent, message=said)


def floor(directory: Path, seconds: float) -> float:
    """Bare sqlite3: one insert of 250 bytes, one commit, WAL, FULL; a second."""
    connection = sqlite3.connect(directory / "floor.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE floor (id TEXT PRIMARY KEY, text TEXT NOT NULL)")
    done, until = 0, time.perf_counter() + seconds
    started = time.perf_counter()
    while time.perf_counter() < until:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO floor VALUES (?, ?)", (SYSTEM.uuid7(), TEXT))
        connection.execute("COMMIT")
        done += 1
    elapsed = time.perf_counter() - started
    connection.close()
    return done / elapsed


async def rate(call: Callable[[int], Awaitable[object]], callers: int, seconds: float) -> tuple[float, float]:
    """Calls a second, and the median of one in milliseconds."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        while (before := time.perf_counter()) < until:
            await call(number)
            times.append(time.perf_counter() - before)

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(callers):
            tasks.start_soon(caller, number)
    return len(times) / (time.perf_counter() - started), statistics.median(times) * 1000


async def spent(call: Timed, rounds: int = 20) -> float:
    """The median of one call in milliseconds."""
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        await call()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1000


async def measure(arguments: argparse.Namespace, console: Console) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        bare = floor(Path(directory), arguments.seconds)
        storage = SqliteStorage(await opened(Options(path=f"{directory}/hub.db", deadline=600.0)))
        world = World(storage)
        await world.build(agents=64)
        table = Table(title="durable records, synchronous = FULL")
        for column in ("callers", "records/s", "p50 ms", "× floor", "in one commit"):
            table.add_column(column, justify="right")
        table.add_row("floor (bare sqlite3)", f"{bare:,.0f}", f"{1000 / bare:.2f}", "1.00", "1")

        async def record(number: int) -> None:
            await storage.record(Recording(intents=(world.message(number),)))

        for callers in (1, 16, 64):
            speed, median = await rate(record, callers, arguments.seconds)
            row = (f"{speed:,.0f}", f"{median:.2f}", f"{speed / bare:.2f}", f"{storage.last_batch:.0f}")
            table.add_row(str(callers), *row)
        console.print(table)
        await lives(world, arguments.seconds, console)
        await growth(world, arguments, console)
        await storage.close()


async def lives(world: World, seconds: float, console: Console) -> None:
    """Claims and ends, 64 at a time, of what the records left behind."""
    ended, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds and (done := await world.cycle(64)):
        ended += done
    console.print(f"claimed and ended, 64 at a time: {ended / (time.perf_counter() - started):,.0f}/s")


async def growth(world: World, arguments: argparse.Namespace, console: Console) -> None:
    """What a claim, a poll and the sweeps cost as history and backlog grow."""
    storage = world.storage
    table = Table(title="ms for one call, as history and backlog grow")
    for column in ("ended rows", "pending rows", "record", "claim + end", "claim, empty", "poll", "sweeps", "gauges"):
        table.add_column(column, justify="right")
    ended = pending = 0
    for history, backlog in ((0, 0), (arguments.history, 0), (arguments.history, arguments.backlog)):
        while await world.cycle(256):
            pass
        await _fill(world, "done", history - ended)
        await _fill(world, "pending", backlog - pending)
        ended, pending = history, backlog
        nothing = ClaimRequest(session=world.session, limit=1, ops=frozenset({Op.STOP}))
        table.add_row(
            f"{history:,}",
            f"{backlog:,}",
            f"{await spent(lambda: storage.record(Recording(intents=(world.message(1),)))):.2f}",
            f"{await spent(lambda: world.cycle(1)):.2f}",
            f"{await spent(partial(storage.claim, nothing)):.2f}",
            f"{await spent(lambda: storage.poll(world.node)):.2f}",
            f"{await spent(lambda: _sweeps(world)):.2f}",
            f"{await spent(storage.unfinished):.2f}",
        )
    console.print(table)


async def _sweeps(world: World) -> None:
    await world.storage.redrive(world.node, 500)
    await world.storage.expire_due(world.node, 500)
    await world.storage.expire_unheld(world.node, 5.0, 500)


async def _fill(world: World, state: str, rows: int) -> None:
    """Rows of messages, written straight into the table: only their number matters."""
    import sqlalchemy as sa

    from plugins.storage.schema import messages

    def fill(connection: sa.Connection) -> None:
        now = SYSTEM.now()
        values = []
        for number in range(rows):
            intent = world.message(number)
            values.append(
                {
                    "id": intent.id,
                    "project_id": intent.project_id,
                    "sender": "bench",
                    "recipient": intent.agent_slug,
                    "recipient_agent_id": intent.agent_id,
                    "agent_slug": intent.agent_slug,
                    "msg": TEXT,
                    "broker_id": intent.broker_id,
                    "dispatch_state": state,
                    "seq": 10_000_000 + now + number,
                    "deadline_at": now + 86_400_000_000,
                    "route": "forward",
                    "principal": "bench",
                    "request_id": "bench",
                    "node_id": world.node,
                    "created": now,
                    "ended_at": None if state == "pending" else now,
                }
            )
        if values:
            connection.execute(sa.insert(messages), values)

    await world.storage.sql.transaction(fill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--history", type=int, default=100_000)
    parser.add_argument("--backlog", type=int, default=10_000)
    parser.add_argument("--directory", default=None, help="where the databases are made; the system's own otherwise")
    arguments = parser.parse_args()
    anyio.run(measure, arguments, Console(), backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
