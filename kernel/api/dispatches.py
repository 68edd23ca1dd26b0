"""Dispatches: what became of each call, and why."""

from __future__ import annotations

from importlib.metadata import version

from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.operations import DISPATCHES
from kernel.api.pages import PageQuery, listed
from kernel.api.routes import route
from kernel.clock import is_uuid
from kernel.errors import Forbidden, NotFound
from kernel.explain import explained
from kernel.intent import IntentId, Op, State
from kernel.storage import IntentFilter


class DispatchQuery(PageQuery, frozen=True, kw_only=True, rename="camel"):
    state: State | None = None
    op: Op | None = None
    agent_id: str | None = None
    broker_id: str | None = None
    project_id: str | None = None
    group_id: str | None = None

    @property
    def where(self) -> IntentFilter:
        return IntentFilter(
            state=self.state,
            op=self.op,
            agent_id=self.agent_id,
            broker_id=self.broker_id,
            project_id=self.project_id,
            group_id=self.group_id,
        )


class Dispatches:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._version = version("pointsman")

    @route(action="dispatch.list", access="user", query=DispatchQuery)
    async def on_get(self, req: Asked, resp: Responded, query: DispatchQuery) -> None:
        storage = self._edge.storage
        rows = await storage.list_intents(query.where, query.page)
        total = await storage.count_intents(query.where) if query.count else None
        tell(
            resp,
            listed(
                "dispatches", rows, query.page, created=lambda row: row.created_at, show=shapes.dispatch, total=total
            ),
        )

    @route(action="dispatch.show", access="user")
    async def on_get_one(self, req: Asked, resp: Responded, dispatch: str) -> None:
        found = await self._edge.storage.find_intents([_id(dispatch)])
        if not found:
            raise _unknown(dispatch)
        tell(resp, shapes.dispatch(found[0]))

    @route(action="dispatch.cancel", access="user")
    async def on_post_cancel(self, req: Asked, resp: Responded, dispatch: str) -> None:
        cancelled = await self._edge.dispatcher.cancel(_id(dispatch), str(req.principal))
        tell(resp, {"outcome": cancelled.outcome, "dispatch": shapes.dispatch(cancelled.intent)})

    @route(action="dispatch.requeue", access="user")
    async def on_post_requeue(self, req: Asked, resp: Responded, dispatch: str) -> None:
        """A new dispatch that asks for the same; the old one keeps its end."""
        if req.principal.role != "admin":
            raise Forbidden("only an administrator may ask for a dispatch once more")
        intent = await self._edge.dispatcher.requeue(_id(dispatch), str(req.principal), req.request_id)
        resp.set_header("X-Dispatch-Id", intent.id)
        resp.set_header("Location", f"{DISPATCHES}/{intent.id}")
        tell(resp, shapes.dispatch(intent), 202)

    @route(action="dispatch.explain", access="user")
    async def on_get_explain(self, req: Asked, resp: Responded, dispatch: str) -> None:
        view = await self._edge.storage.explain(_id(dispatch))
        if view is None:
            raise _unknown(dispatch)
        told = explained(view, self._edge.settings, self._version)
        tell(resp, shapes.explanation(view, told))


def _id(text: str) -> IntentId:
    """Raises: NotFound for what is no id at all."""
    if not is_uuid(text):
        raise _unknown(text)
    return IntentId(text.lower())


def _unknown(text: str) -> NotFound:
    return NotFound(f"there is no dispatch {text}, or it is past its retention")
