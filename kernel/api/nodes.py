"""The hubs of this deployment: who lives, what each holds, and how one is asked to hand it over."""

from __future__ import annotations

from collections import Counter

from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.pages import MOST
from kernel.api.routes import route
from kernel.errors import Forbidden, InvalidState, NotFound
from kernel.node import Node, NodeId
from kernel.storage import Keyset, Page


class Nodes:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="node.list", access="user")
    async def on_get(self, req: Asked, resp: Responded) -> None:
        held = await self._held()
        tell(resp, {"nodes": [shapes.node(node, held[node.id]) for node in await self._live()]})

    @route(action="node.drain", access="user")
    async def on_post_drain(self, req: Asked, resp: Responded, node: str) -> None:
        """Its next beat tells it. Raises: Forbidden, NotFound; InvalidState when nobody could take over."""
        if req.principal.role != "admin":
            raise Forbidden("only an administrator asks a hub to drain")
        await self._check_others(node)
        asked = await self._edge.storage.drain_node(NodeId(node))
        if asked is None:
            raise _no_such(node)
        tell(resp, shapes.node(asked, (await self._held())[asked.id]), 202)

    async def _check_others(self, node: str) -> None:
        live = await self._live()
        if node not in {one.id for one in live}:
            raise _no_such(node)
        if all(one.draining for one in live if one.id != node):
            raise InvalidState("no other hub would take its brokers: start one first, or stop this one")

    async def _live(self) -> list[Node]:
        return [node for node in await self._edge.storage.list_nodes() if node.lost_at is None]

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


def _no_such(node: str) -> NotFound:
    return NotFound(f"there is no live hub {node}: `pointsman node list` shows them")
