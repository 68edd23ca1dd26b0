"""From a request to a call of the pipeline, and from its answer to HTTP: the same for every operation."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.preferences import Preferences, key_of, preferences_of
from kernel.api.projects import known_project
from kernel.call import Answer, Call
from kernel.errors import IdempotencyConflict, InvalidState, NotFound, Refused, StorageUnavailable, Unavailable
from kernel.intent import Intent, Op
from kernel.storage import AgentView, IdempotencyKey

DISPATCHES = "/api/v1/dispatches"
FINAL = (IdempotencyConflict, StorageUnavailable)
"""Refusals that no earlier request with the same key can help against."""
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What every operation takes from its request's head."""

    preferences: Preferences
    key: IdempotencyKey | None
    principal: str
    request_id: str
    traceparent: str | None

    def call(self, op: Op, view: AgentView, **more: Any) -> Call:
        asked = {
            "principal": self.principal,
            "request_id": self.request_id,
            "key": self.key,
            "deliver": self.preferences.deliver,
            "deadline_in": self.preferences.deadline_in,
            "deadline_at": self.preferences.deadline_at,
            "wait": self.preferences.wait,
            "traceparent": self.traceparent,
        }
        return Call(op=op, view=view, **{**asked, **more})

    async def once(self, edge: Edge, ask: Callable[[], Awaitable[Answer]], wait: float | None) -> Answer:
        """What `ask` gives, unless it is refused what an earlier request with the same key was not: a repeat of a
        deletion, say, finds the agent deleted. What is not refused finds that request where it is recorded."""
        try:
            return await ask()
        except (Refused, Unavailable) as refusal:
            if self.key is None or refusal.dispatch_id or isinstance(refusal, FINAL):
                raise
            repeated = await edge.dispatcher.repeated(self.key, wait)
            if repeated is None:
                raise
            return repeated


async def operation_of(req: Asked) -> Operation:
    """Raises: Invalid."""
    headers = req.lower_headers
    principal = str(req.principal)
    return Operation(
        preferences=preferences_of(headers),
        key=key_of(headers, principal, req.method, req.path, await req.raw()),
        principal=principal,
        request_id=req.request_id,
        traceparent=_trace(headers.get("traceparent", "")),
    )


def _trace(header: str) -> str | None:
    """W3C trace context, or nothing: what is none is not handed on."""
    return header if TRACEPARENT.fullmatch(header) else None


async def known_agent(edge: Edge, ref: str, project_ref: str | None) -> AgentView:
    """By id, or within its project by slug. Raises: NotFound."""
    project = await known_project(edge, project_ref) if project_ref else None
    view = await edge.storage.find_agent(ref, project.id if project else None)
    if view is None or (project and view.agent.project_id != project.id):
        raise NotFound(f"there is no agent {ref}" + (f" in project {project.slug}" if project else ""))
    return view


async def live_agent(edge: Edge, ref: str, project_ref: str | None) -> AgentView:
    """Raises: NotFound; InvalidState when it is deleted."""
    view = await known_agent(edge, ref, project_ref)
    if view.agent.deleted_at is not None:
        raise InvalidState(
            f"agent {view.agent.slug} is deleted", details={"deletedAt": shapes.agent(view.agent)["deletedAt"]}
        )
    return view


def named(resp: Responded, intent: Intent) -> None:
    """Every answer of an operation says which intent it is about."""
    resp.set_header("X-Dispatch-Id", intent.id)


def tell_goes_on(resp: Responded, answer: Answer, body: Any = None) -> None:
    """It is durable and goes on: where to look."""
    named(resp, answer.intent)
    resp.set_header("Location", f"{DISPATCHES}/{answer.intent.id}")
    tell(resp, shapes.dispatch(answer.intent) if body is None else body, 202)


def tell_agent(resp: Responded, answer: Answer) -> None:
    """The agent as stored after the operation; or that it goes on."""
    if not answer.ended:
        tell_goes_on(resp, answer)
        return
    named(resp, answer.intent)
    tell(resp, None if answer.agent is None else shapes.agent(answer.agent))
