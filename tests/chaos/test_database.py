"""The database is killed, frozen, restarted and replaced under load (P1–P6)."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from kernel.testing.postgres import Server
from tests.chaos.faults import connections_terminated, database_frozen, database_killed, listener_terminated
from tests.chaos.load import under_load
from tests.chaos.storm import storm
from tests.chaos.world import world

pytestmark = pytest.mark.anyio


async def test_it_dies_stands_still_and_drops_connections(tmp_path: Path, server: Server) -> None:
    await storm(
        tmp_path, server, [listener_terminated, connections_terminated, database_killed, database_frozen], slow=0.5
    )


async def test_a_failover_to_a_standby_that_has_everything(tmp_path: Path) -> None:
    with Server() as primary, primary.standby() as standby:
        primary.configure(synchronous_standby_names="*")
        async with world(tmp_path, primary, standby=standby) as made, under_load(made) as load:
            await anyio.sleep(1.5)
            before = load.done
            primary.kill()
            standby.promote()
            made.server, made.crashed = standby, True
            await anyio.sleep(4)
            load.over.set()
            assert load.done > before
            await made.check()
