"""Whether this hub lives, whether it may be sent requests, and its numbers."""

from __future__ import annotations

from importlib.metadata import version

from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.routes import route
from kernel.errors import Draining, Unavailable

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._started = edge.clock.monotonic()
        self._version = version("pointsman")

    @route(action="hub.alive", access="public")
    async def on_get_alive(self, req: Asked, resp: Responded) -> None:
        uptime = round(self._edge.clock.monotonic() - self._started, 3)
        tell(resp, {"status": "ok", "version": self._version, "nodeId": self._edge.host.node_id, "uptime": uptime})

    @route(action="hub.ready", access="public")
    async def on_get_ready(self, req: Asked, resp: Responded) -> None:
        faults = dict(await self._edge.readiness.faults())
        if not faults:
            tell(resp, {"status": "ready", "nodeId": self._edge.host.node_id, "bus": self._edge.readiness.bus})
            return
        kind = Draining if "draining" in faults else Unavailable
        told = "; ".join(f"{name}: {why}" for name, why in faults.items())
        raise kind(f"this hub is not ready: {told}", details={"checks": faults})

    @route(action="hub.metrics", access="public")
    async def on_get_metrics(self, req: Asked, resp: Responded) -> None:
        await self._edge.host.look()
        self._edge.observer.flush()
        parts = self._edge.hooks.collect_metrics.gather(self._edge.host)
        resp.content_type = METRICS_TYPE
        resp.data = "".join(part.value for part in parts).encode()
