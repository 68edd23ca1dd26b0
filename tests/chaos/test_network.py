"""Ways between hubs, brokers and the database are cut, silent and half open under load (P1–P6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.testing.postgres import Server
from tests.chaos.faults import door_half_open, door_stalled, doors_slow, socket_cut, way_cut, way_stalled
from tests.chaos.storm import storm

pytestmark = pytest.mark.anyio


async def test_hubs_and_their_database(tmp_path: Path, server: Server) -> None:
    await storm(tmp_path, server, [way_cut, way_stalled], slow=0.5)


async def test_hubs_and_their_brokers(tmp_path: Path, server: Server) -> None:
    await storm(tmp_path, server, [socket_cut, door_stalled, door_half_open, doors_slow], slow=0.5)
