"""The least that a cross-hub call costs PostgreSQL, with no hub around it: `python -m bench.rig.pingpong DSN`.

Two processes, as two hubs are; each has one connection that writes and one that listens. The entry's commit of a row
wakes the owner, which claims the row in a commit and ends it in another, and that wakes the entry. As the hubs do it,
the first commit waits for the disk and the other two do not. NOTIFY goes with the commit, which costs no way of its
own. This file is the owner's process; `there_and_back` is the entry. `inserted` is a floor of its own: what is durable
costs at least that.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from contextlib import suppress
from typing import Any, NamedTuple

import asyncpg
import uvloop

TABLE = """
CREATE TABLE IF NOT EXISTS floor (id uuid PRIMARY KEY, state int NOT NULL DEFAULT 0, text text NOT NULL, result text,
claimed_at timestamptz, ended_at timestamptz) WITH (fillfactor = 70)
"""
BORN = """
WITH born AS (INSERT INTO floor (id, text) VALUES ($1, $2) RETURNING id)
SELECT pg_notify('floor_owner', id::text) FROM born
"""
CLAIM = "UPDATE floor SET state = 1, claimed_at = now() WHERE id = $1 AND state = 0 RETURNING text"
END = """
WITH ended AS (UPDATE floor SET state = 2, ended_at = now(), result = $2 WHERE id = $1 AND state = 1 RETURNING id)
SELECT pg_notify('floor_entry', id || ' ' || $3) FROM ended
"""
INSERT = "INSERT INTO floor (id, text) VALUES ($1, $2)"
TEXT, RESULT = "x" * 250, "y" * 60


class Trip(NamedTuple):
    """Seconds from the beginning until it is claimed, and until its end is known."""

    there: float
    back: float


async def connected(dsn: str, *, lazily: bool = False) -> Any:
    settings = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
    return await asyncpg.connect(dsn, server_settings=settings | ({"synchronous_commit": "off"} if lazily else {}))


async def there_and_back(dsn: str, seconds: float) -> list[Trip]:
    """One after the other."""
    writer, listener = await connected(dsn), await connected(dsn)
    waiting: dict[str, asyncio.Future[float]] = {}

    def ended(*given: str) -> None:
        one, claimed = given[3].split()
        waiting.pop(one).set_result(float(claimed))

    await listener.add_listener("floor_entry", ended)
    trips: list[Trip] = []
    try:
        until = time.monotonic() + seconds
        while (before := time.monotonic()) < until:
            one = str(uuid.uuid4())
            end = waiting[one] = asyncio.get_running_loop().create_future()
            await writer.fetch(BORN, one, TEXT)
            claimed = await asyncio.wait_for(end, 10)
            trips.append(Trip(claimed - before, time.monotonic() - before))
    finally:
        writer.terminate()
        listener.terminate()
    return trips


async def inserted(dsn: str, seconds: float) -> list[float]:
    """Seconds of each durable commit of one row."""
    writer = await connected(dsn)
    times: list[float] = []
    try:
        await writer.execute(TABLE)
        until = time.perf_counter() + seconds
        while (before := time.perf_counter()) < until:
            await writer.fetch(INSERT, str(uuid.uuid4()), TEXT)
            times.append(time.perf_counter() - before)
    finally:
        writer.terminate()
    return times


async def own(dsn: str) -> None:
    worker, listener = await connected(dsn, lazily=True), await connected(dsn)
    await worker.execute(TABLE)
    told: asyncio.Queue[str] = asyncio.Queue()
    await listener.add_listener("floor_owner", lambda *given: told.put_nowait(given[3]))
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(_serve(worker, told))
    await loop.run_in_executor(None, sys.stdin.readline)
    print('"ready"', flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    worker.terminate()
    listener.terminate()


async def _serve(worker: Any, told: asyncio.Queue[str]) -> None:
    while True:
        one = await told.get()
        await worker.fetch(CLAIM, one)
        await worker.fetch(END, one, RESULT, repr(time.monotonic()))


if __name__ == "__main__":
    uvloop.run(own(sys.argv[1]))
