"""Two processes with one identity, each of which knows one hub only: no hub ever sees both, and yet they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.cluster import Cluster
from tests.harness.processes import eventually

pytestmark = pytest.mark.anyio


async def test_twins_at_two_hubs_are_told_of(tmp_path: Path, postgres_dsn: str) -> None:
    async with Cluster(tmp_path / "hubs", postgres_dsn, hubs=2) as cluster:
        identity = await cluster.hubs[0].api.register_broker()
        one, other = (
            cluster.broker(identity, name=f"twin-{n}", urls=[hub.url], backoff=(0.2, 0.5))
            for n, hub in enumerate(cluster.hubs)
        )

        async def told() -> bool:
            return bool((await cluster.affinity(identity["broker_id"])).get("conflict"))

        async with one, other:
            await eventually(told, "a broker that is in conflict", patience=60)
            logs = [hub.child.log.read_text() for hub in cluster.hubs if hub.child]
            assert any("two processes use its identity by turns" in log for log in logs)

            def reasons() -> list[str]:
                return [str(event.get("reason")) for twin in (one, other) for event in twin.events(what="closed")]

            async def sent_away() -> bool:
                return "other_instance" in reasons()

            await eventually(sent_away, "one of them that is told to stay away", patience=30)
