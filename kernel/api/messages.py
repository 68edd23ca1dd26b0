"""Messages: to an agent, where each is a dispatch of its own; and a user's inbox."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.envelopes import NewMessage, check_phase
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.fanout import Fanout, Part, tell_fanout
from kernel.api.operations import Operation, known_agent, live_agent, named, operation_of, tell_goes_on
from kernel.api.pages import PageQuery, listed
from kernel.api.routes import route
from kernel.call import Answer
from kernel.clock import is_uuid
from kernel.errors import NotFound
from kernel.intent import Op


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    wait: bool = False


class InboxQuery(PageQuery, frozen=True, kw_only=True):
    unread: bool = False
    project: str | None = None
    agent: str | None = None
    type: str | None = None

    @property
    def where(self) -> dict[str, Any]:
        return {"unread": self.unread, "project_id": self.project, "agent_id": self.agent, "type": self.type}


class Messages:
    """To one agent, or to those of a group."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="agent.message", access="user", body=NewMessage, query=Waits)
    async def on_post(
        self, req: Asked, resp: Responded, agent: str, body: NewMessage, query: Waits, project: str = ""
    ) -> None:
        """202 once it is durable; 200 once the broker has acknowledged it, for a caller who waits."""
        body.check_length()
        operation = await operation_of(req)
        if body.to_group:
            await self._to_group(req, resp, operation, body, agent, project)
            return
        wait = operation.preferences.wait
        wait = wait if wait is not None or query.wait else 0.0

        async def ask() -> Answer:
            view = await live_agent(self._edge, agent, project)
            check_phase(view.agent, hold=operation.preferences.deliver == "hold")
            envelope = body.envelope(req.principal, view.agent)
            message = body.row(req.principal, view.agent, envelope)
            call = operation.call(Op.MESSAGE, view, args=envelope, message=message, wait=wait)
            return await self._edge.dispatcher.call(call)

        _tell_message(resp, await operation.once(self._edge, ask, wait))

    async def _to_group(
        self, req: Asked, resp: Responded, operation: Operation, body: NewMessage, agent: str, project: str
    ) -> None:
        """The agent in the path says in which project the names of its group are looked up."""
        fanout = Fanout(self._edge, req.principal, operation)

        async def members() -> list[Part]:
            home = (await known_agent(self._edge, agent, project)).project
            return [Part(said=body, to=name, project_id=home.id) for name in body.group]

        tell_fanout(resp, await fanout.send(members))


def _tell_message(resp: Responded, answer: Answer) -> None:
    intent = answer.intent
    told = {"messageId": intent.id, "dispatchState": intent.state, "seq": intent.seq}
    if not answer.ended:
        tell_goes_on(resp, answer, told)
        return
    named(resp, intent)
    tell(resp, told)


class Inbox:
    """Messages to whoever asks."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="message.list", access="user", query=InboxQuery)
    async def on_get(self, req: Asked, resp: Responded, query: InboxQuery) -> None:
        storage, page = self._edge.storage, query.page
        rows = await storage.list_messages(req.principal.id, page, **query.where)
        total = await storage.count_messages(req.principal.id, **query.where) if query.count else None
        tell(resp, listed("messages", rows, page, created=lambda row: row.created, show=shapes.message, total=total))

    @route(action="message.read", access="user")
    async def on_post_read(self, req: Asked, resp: Responded, message: str) -> None:
        if not is_uuid(message) or not await self._edge.storage.mark_read(message.lower(), req.principal.id):
            raise NotFound(f"there is no message {message} to you")
        resp.status = 204
