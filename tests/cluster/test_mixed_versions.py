"""Old and new hubs on one database: an operation that only the new ones know waits for one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.cluster import Cluster
from tests.harness.hubprocess import HubProcess

pytestmark = pytest.mark.anyio

OLDER = '''
"""Makes a hub forget an operation, as if it had been built before there was one."""
import kernel.drain
from kernel import Op, hookimpl

kernel.drain.OPS = frozenset(Op) - {Op.SUSPEND}


class Plugin:
    name = "older"
    api = 1

    @hookimpl
    async def on_start(self) -> None:
        """Nothing more."""
'''


def older(hub: HubProcess) -> HubProcess:
    (hub.directory / "older.py").write_text(OLDER)
    hub.config += "  - use: ./older.py\n"
    return hub


async def test_an_operation_that_the_holder_does_not_know_waits_for_a_hub_that_does(
    tmp_path: Path, postgres_dsn: str
) -> None:
    cluster = Cluster(tmp_path, postgres_dsn, hubs=2)
    old, new = older(cluster.hubs[0]), cluster.hubs[1]
    async with cluster:
        identity = await new.api.register_broker()
        async with cluster.broker(identity, first=old):
            assert await cluster.owner(identity["broker_id"]) is old
            project = await new.api.create_project()
            agent = await new.api.create_agent(project, identity["broker_id"])
            asked = (await new.api.do("suspend", agent["id"], prefer="respond-async")).expect(202)
            known = (await new.api.message(agent["id"], "still served", prefer="wait=20")).expect(200)
            assert (await new.api.dispatch(known.dispatch))["state"] == "done"
            assert (await new.api.dispatch(asked.dispatch))["state"] == "pending"
            await old.terminate()
            assert await cluster.owner(identity["broker_id"]) is new
            await new.api.agent_is(agent["id"], "suspended")
            row = await new.api.dispatch(asked.dispatch)
            assert (row["state"], row["attempts"]) == ("done", 1)
