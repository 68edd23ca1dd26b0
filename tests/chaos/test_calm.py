"""Under load and without a fault every promise is kept, and nothing is sent twice."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from kernel.testing.postgres import Server
from tests.chaos.load import under_load
from tests.chaos.world import world
from tests.harness.checker import repeated_after_answer

pytestmark = pytest.mark.anyio


async def test_load_alone_breaks_no_promise(tmp_path: Path, server: Server) -> None:
    async with world(tmp_path, server, seed=1) as made:
        async with under_load(made) as load:
            await anyio.sleep(4)
        assert load.done > 20
        for run in await made.check():
            assert repeated_after_answer(run) == []
