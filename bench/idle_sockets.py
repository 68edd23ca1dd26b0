"""Memory of idle broker sockets: the growth of one hub's resident memory for each, beside sockets that are only read.

The floor is the bare hub (`bench/rig/bare.py`): the same server, framework and signed upgrade, but no session is
claimed and no link is kept. Some sockets are there before the first look, so that what is loaded once does not count.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

import anyio

from bench.rig import report, script
from bench.rig.children import child
from bench.rig.hub import Hub, serving

WARM = 50
HELPERS = 2
TARGET = 45.0
QUIET = 0.25
"""Seconds in which the hub's memory must not move to count as quiet, four times in a row."""
SETTLES_WITHIN = 12.0


def resident(pid: int) -> int:
    """KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


async def settled(pid: int) -> int:
    """Its memory once it no longer moves."""
    seen = [resident(pid)]
    with anyio.move_on_after(SETTLES_WITHIN):
        while len(seen) < 5 or len(set(seen[-4:])) > 1:
            await anyio.sleep(QUIET)
            seen.append(resident(pid))
    return seen[-1]


async def registered(hub: Hub, count: int) -> list[dict[str, str]]:
    """So many brokers, eight at a time."""
    made: list[dict[str, str]] = []
    numbers = iter(range(count))

    async def work() -> None:
        made.extend([await hub.register_broker(f"idle-{number}") for number in numbers])

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(work)
    return made


async def look(directory: Path, sockets: int, step: script.Step, *, bare: bool) -> tuple[int, int, int]:
    """KiB before and after, and how many sockets came between."""
    name = "bare hub" if bare else "hub"
    async with serving(directory / name.replace(" ", "-"), bare=bare) as hub:
        step(f"{name}: registering {sockets} brokers")
        identities = await registered(hub, sockets + WARM)
        with ExitStack() as stack:
            helpers = [
                stack.enter_context(child("bench.rig.idling", cwd=directory, asked=True)) for _ in range(HELPERS)
            ]
            await helpers[0].ask({"url": hub.url, "identities": identities[:WARM]})
            before = await settled(hub.process.pid)
            step(f"{name}: connecting {sockets} sockets")
            for number, helper in enumerate(helpers):
                await helper.ask({"url": hub.url, "identities": identities[WARM + number :: HELPERS]})
            after = await settled(hub.process.pid)
            links = 0 if bare else int(await hub.metric("pointsman_links"))
    assert bare or links == sockets + WARM, f"{links} of {sockets + WARM} sockets stand"
    return before, after, sockets


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    table = report.Table(
        f"memory of {chosen.sockets} idle broker sockets",
        *("process", "before MiB", "after MiB", "KiB a socket", "× bare"),
        note=f"target: at most {TARGET:g} KiB each",
    )
    floor = 0.0
    for name, bare in (("bare: let in, then only read", True), ("hub: session, link, two tasks", False)):
        before, after, sockets = await look(directory, chosen.sockets, step, bare=bare)
        each = (after - before) / sockets
        floor = floor or each
        table.add(name, before / 1024, after / 1024, each, each / floor)
    return [table]


if __name__ == "__main__":
    if not Path("/proc/self/status").exists():
        sys.exit("idle_sockets reads /proc: it runs on Linux only")
    parser = script.arguments(__doc__, seconds=0.0)
    parser.add_argument("--sockets", type=int, default=1_000)
    script.run(measure, parser.parse_args(), steps=4)
