"""Where a hub's time goes: `python -m bench.rig.profile local|message [--callers 64]`, by samples of its threads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from bench.durable_message import messages
from bench.local_call import starts, world
from bench.rig import report, script
from bench.rig.caller import closed_loop
from bench.rig.hub import serving
from bench.rig.sampling import FILE

IDLE = (
    "base_events.py",
    "runners.py",
    "worker.py Worker._take",
    "threading.py",
    "sampling.py",
    "thread.py",
    "queues",
    "runpy",
    "click/",
    "cli/",
    "__main__",
    "_core/_eventloop.py",
    "_asyncio.py AsyncIOBackend.run",
)


async def sampled(path: str, callers: int, seconds: float, directory: Path) -> tuple[dict[str, dict[str, int]], int]:
    """The samples, and how many calls were answered meanwhile."""
    async with (
        serving(directory / "hub", plugins=("bench.rig.sampling",)) as hub,
        world(hub, callers, directory) as (agents, _),
    ):
        asked = starts(hub, agents) if path == "local" else messages(hub, agents)
        calls = await closed_loop(hub.address, asked, seconds)
    samples: dict[str, dict[str, int]] = json.loads((directory / "hub" / FILE).read_text())
    return samples, len(calls.timed)


def shown(title: str, counts: Mapping[str, int], calls: int, rows: int) -> report.Table:
    """The functions seen most often. A sample is a millisecond, when the sampler is not held up."""
    table = report.Table(title, "thread, function", "samples", "a call")
    busy = [(name, count) for name, count in counts.items() if not any(idle in name for idle in IDLE)]
    for name, count in sorted(busy, key=lambda one: -one[1])[:rows]:
        table.add(name, count, count / calls)
    return table


async def measure(chosen: argparse.Namespace, step: script.Step, directory: Path) -> list[report.Table]:
    step("sampling")
    samples, calls = await sampled(chosen.path, chosen.callers, chosen.seconds, directory)
    return [shown(name, counts, calls, chosen.rows) for name, counts in samples.items()]


if __name__ == "__main__":
    parser = script.arguments(__doc__, seconds=10.0)
    parser.add_argument("path", choices=("local", "message"))
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rows", type=int, default=40)
    script.run(measure, parser.parse_args(), steps=1)
