"""Our own broker program, and hubs behind a pooler, in storms of hubs, brokers and databases (P1–P6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.testing.postgres import Server
from tests.chaos.faults import answers_lost, broker_killed, broker_stopped, connections_terminated, owner_killed
from tests.chaos.storm import storm

pytestmark = pytest.mark.anyio


async def test_our_broker_dies_and_stops_before_hubs_behind_a_pooler(tmp_path: Path, server: Server) -> None:
    faults = [broker_killed, answers_lost, connections_terminated, broker_stopped, owner_killed]
    await storm(tmp_path, server, faults, slow=0.5, brokers=1, agents=2, own=1, pooled=True)
