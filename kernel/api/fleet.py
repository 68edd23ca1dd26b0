"""This hub and its plugins."""

from __future__ import annotations

from importlib.metadata import version

from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.routes import route


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

    @route(action="hub.plugins", access="user")
    async def on_get_plugins(self, req: Asked, resp: Responded) -> None:
        tell(resp, {"plugins": self._plugins()})

    def _plugins(self) -> list[object]:
        return [shapes.plugin(row) for row in self._edge.plugins()]
