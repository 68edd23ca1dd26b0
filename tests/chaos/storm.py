"""One storm: faults from a plan while callers work, then the check of every promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernel.testing.postgres import Server
from tests.chaos.faults import Fault, carry_out
from tests.chaos.load import under_load
from tests.chaos.world import world


async def storm(
    directory: Path, server: Server, planned: Sequence[Fault], *, seed: int = 0, slow: float = 6.0, **more: Any
) -> None:
    """`slow` operations take longer than every window, unless a test has no time for it.

    Raises: AssertionError with the broken promises; the names and times of the faults are in `calls.jsonl`."""
    async with world(directory, server, seed=seed, linger=slow, **more) as made:
        for broker in made.scripted:
            await broker.be_slow(slow)
        async with under_load(made) as load:
            await carry_out(made, planned)
        assert load.done > len(planned)
        await made.check()
