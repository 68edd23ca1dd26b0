"""Hubs are killed, stopped and frozen under load, and every promise is kept (P1–P6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.testing.postgres import Server
from tests.chaos.faults import entry_killed, owner_frozen, owner_killed, owner_stopped
from tests.chaos.storm import storm

pytestmark = pytest.mark.anyio


async def test_hubs_die_stop_and_wake_as_zombies(tmp_path: Path, server: Server) -> None:
    await storm(tmp_path, server, [owner_killed, owner_frozen, entry_killed, owner_stopped])


async def test_clocks_of_hubs_decide_nothing(tmp_path: Path, server: Server) -> None:
    await storm(tmp_path, server, [owner_killed], slow=0.5, clocks=(0, 300, -300))
