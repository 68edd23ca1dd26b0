"""Messages: to an agent, where each is a dispatch of its own; and a user's inbox."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.agent import HOLDS_MESSAGES, Agent, Phase
from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.operations import live_agent, named, operation_of, tell_goes_on
from kernel.api.pages import PageQuery, listed
from kernel.api.routes import route
from kernel.call import Answer
from kernel.clock import is_uuid
from kernel.errors import InvalidState, NotFound, PayloadTooLarge
from kernel.intent import Op, State
from kernel.message import TEXT_LIMIT, Message
from kernel.session import Principal

GROUPS = ("group[", "set[")


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Either a plain text or a whole envelope; who sent it is never the caller's to say."""

    message: str | None = None
    structured_message: dict[str, Any] | None = None
    interrupt: bool = False
    urgent: bool = False
    notify: bool = False
    wake: bool = False

    def problems(self) -> dict[str, str]:
        if (self.message is None) == (self.structured_message is None):
            return {"message": "expected either message or structured_message"}
        if self.structured_message is None:
            return {} if self.text.strip() else {"message": "must not be empty"}
        return self._envelope_problems(self.structured_message)

    def _envelope_problems(self, envelope: dict[str, Any]) -> dict[str, str]:
        found = {}
        if not self.text.strip():
            found["structured_message.msg"] = "must be a text that is not empty"
        if not isinstance(envelope.get("type", ""), str):
            found["structured_message.type"] = "expected a string"
        if str(envelope.get("recipient", "")).startswith(GROUPS):
            found["structured_message.recipient"] = "this path reaches one agent: send one message to each"
        return found

    @property
    def text(self) -> str:
        said = self.message if self.structured_message is None else self.structured_message.get("msg")
        return said if isinstance(said, str) else ""

    @property
    def is_urgent(self) -> bool:
        return self.urgent or bool((self.structured_message or {}).get("urgent"))

    def envelope(self, sender: Principal, agent: Agent) -> dict[str, Any]:
        """The whole of what the broker is sent, now or when a lane is drained later."""
        flags = {name: True for name in ("interrupt", "urgent", "notify", "wake") if getattr(self, name)}
        told = {"sender": sender_of(sender), "sender_id": sender.id}
        if self.structured_message is None:
            return {"message": self.message, **told, **flags}
        addressed = {"recipient": f"agent:{agent.slug}", "recipient_id": agent.id}
        return {"structured_message": {**self.structured_message, **told, **addressed}, **flags}


def sender_of(principal: Principal) -> str:
    return f"{principal.kind}:{principal.name}"


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
    """To one agent."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="agent.message", access="user", body=NewMessage, query=Waits)
    async def on_post(
        self, req: Asked, resp: Responded, agent: str, body: NewMessage, query: Waits, project: str = ""
    ) -> None:
        """202 once it is durable; 200 once the broker has acknowledged it, for a caller who waits."""
        if len(body.text.encode()) > TEXT_LIMIT:
            raise PayloadTooLarge(f"a message's text takes at most {TEXT_LIMIT} bytes; send a file some other way")
        operation = await operation_of(req)
        wait = operation.preferences.wait
        wait = wait if wait is not None or query.wait else 0.0
        repeated = await operation.repeated(self._edge, wait)
        if repeated:
            _tell_message(resp, repeated)
            return
        view = await live_agent(self._edge, agent, project)
        _check_phase(view.agent, hold=operation.preferences.deliver == "hold")
        envelope = body.envelope(req.principal, view.agent)
        message = _message(req.principal, view.agent, body, envelope)
        call = operation.call(Op.MESSAGE, view, args=envelope, message=message, wait=wait)
        _tell_message(resp, await self._edge.dispatcher.call(call))


def _check_phase(agent: Agent, *, hold: bool) -> None:
    """Raises: InvalidState for an agent that does not run and is not about to."""
    if agent.phase is Phase.RUNNING or agent.phase in HOLDS_MESSAGES or hold:
        return
    raise InvalidState(
        f"agent {agent.slug} is {agent.phase}: start it first, or send `Prefer: deliver=hold` to have the message "
        "delivered after its next start"
    )


def _message(sender: Principal, agent: Agent, body: NewMessage, envelope: dict[str, Any]) -> Message:
    kind = (body.structured_message or {}).get("type") or "instruction"
    return Message(
        id="",
        project_id=agent.project_id,
        sender=sender_of(sender),
        sender_id=sender.id,
        recipient=f"agent:{agent.slug}",
        recipient_id=agent.id,
        recipient_agent_id=agent.id,
        msg=body.text,
        type=kind,
        urgent=body.is_urgent,
        agent_id=agent.id,
        envelope=envelope,
        dispatch_state=State.PENDING,
    )


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
