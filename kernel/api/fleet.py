"""The hubs of this deployment and the plugins of this one."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version

from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.pages import MOST
from kernel.api.routes import route
from kernel.storage import Keyset, Page


class Fleet:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._version = version("pointsman")

    @route(action="hub.show", access="user")
    async def on_get_hub(self, req: Asked, resp: Responded) -> None:
        host = self._edge.host
        gauges = host.gauges
        tell(
            resp,
            {
                "version": self._version,
                "nodeId": host.node_id,
                "url": host.address(),
                "storage": {"name": host.storage.name, "schema": await host.storage.schema_version()},
                "bus": {
                    "state": gauges.bus_state,
                    "roundTripSeconds": gauges.bus_roundtrip,
                    "reconnects": gauges.bus_reconnects,
                },
                "links": gauges.links,
                "draining": self._edge.links.draining,
                "plugins": self._plugins(),
            },
        )

    @route(action="hub.nodes", access="user")
    async def on_get_nodes(self, req: Asked, resp: Responded) -> None:
        held = await self._held()
        nodes = [node for node in await self._edge.storage.list_nodes() if node.lost_at is None]
        tell(resp, {"nodes": [shapes.node(node, held[node.id]) for node in nodes]})

    async def _held(self) -> Counter[str]:
        """How many brokers each node holds, by their rows."""
        held: Counter[str] = Counter()
        page = Page(limit=MOST)
        while True:
            rows = await self._edge.storage.list_brokers(page)
            shown = rows[: page.limit]
            held.update(row.connected_hub_id for row in shown if row.online and row.connected_hub_id)
            if len(rows) <= page.limit:
                return held
            page = Page(limit=MOST, after=Keyset(created=shown[-1].created, id=shown[-1].id))

    @route(action="hub.plugins", access="user")
    async def on_get_plugins(self, req: Asked, resp: Responded) -> None:
        tell(resp, {"plugins": self._plugins()})

    def _plugins(self) -> list[object]:
        return [shapes.plugin(row) for row in self._edge.plugins()]
