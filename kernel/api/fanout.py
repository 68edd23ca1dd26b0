"""Messages to many agents in one call: all of them in one transaction, and what became of each is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import anyio.lowlevel
import msgspec

from kernel.agent import Agent
from kernel.api.edge import Edge
from kernel.api.envelopes import NewMessage, check_phase
from kernel.api.exchange import Responded, tell
from kernel.api.gate import check_allowed
from kernel.api.operations import DISPATCHES, FINAL, Operation
from kernel.errors import (
    Draining,
    IdempotencyConflict,
    Invalid,
    InvalidState,
    NotFound,
    PointsmanError,
    Refused,
    StorageUnavailable,
    Unavailable,
)
from kernel.intent import IntentId, Op, State
from kernel.plan import Planned
from kernel.session import Principal, Resource
from kernel.storage import AgentView, IdempotencyKey

BREATH = 64
"""Parts that are planned before other requests get their turn."""
MOST_TRIES = 5
"""How often a call is planned anew because others used keys of its parts in the same moment."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a call, before it is known whether its agent can take it."""

    said: NewMessage
    to: str
    """As the caller named it: an id, or a slug of the project."""
    project_id: str | None = None
    view: AgentView | None = None
    """Where the agent was read already."""
    key: IdempotencyKey | None = None
    """Its own, beside that of the whole call."""

    @property
    def ref(self) -> str:
        return self.to.removeprefix("agent:")


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is told of one recipient. Ids are null where there is no such agent, or nothing was stored for it."""

    recipient: str
    agent_id: str | None = None
    message_id: str | None = None
    dispatch_state: State = State.NONE
    error: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class Told(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer to the whole call; with a key it is kept, so that a repeat is told the same."""

    group_id: str
    results: list[Result]


class Drafted(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one part so far, and what is to be recorded for it."""

    result: Result
    planned: Planned | None = None


class Fanout:
    """One call's messages. What an agent cannot take is refused to that recipient alone."""

    def __init__(self, edge: Edge, sender: Principal, operation: Operation, *, broadcasted: bool = False) -> None:
        self._edge = edge
        self._sender = sender
        self._operation = operation
        self._broadcasted = broadcasted
        self._hold = operation.preferences.deliver == "hold"

    async def send(self, draw: Callable[[], Awaitable[Sequence[Part]]]) -> Told:
        """Record all that can be delivered, now or once its agent runs, and wake each owner once. A call whose key
        was used before is told what that one was, also where its parts cannot be drawn any more."""
        try:
            return await self._send(await draw())
        except (Refused, Unavailable) as refusal:
            key = self._operation.key
            found = await self._edge.storage.find_key(key) if key and not isinstance(refusal, FINAL) else None
            if found is None or found.answer is None:
                raise
            return await self._told_before(found.answer)

    async def _send(self, parts: Sequence[Part]) -> Told:
        for _ in range(MOST_TRIES):
            group_id = self._edge.clock.uuid7()
            drafted = await self._draft(await self._addressed(parts), group_id)
            told = Told(group_id=group_id, results=[one.result for one in drafted])
            recorded = await self._edge.dispatcher.accept_together(
                [one.planned for one in drafted if one.planned],
                key=self._operation.key,
                answer=msgspec.json.encode(told),
            )
            if recorded.repeated:
                return await self._told_before(recorded.repeated.answer or b"{}")
            if not recorded.taken:
                return told
        raise StorageUnavailable("others use the keys of these messages all the time: try again")

    async def _told_before(self, answer: bytes) -> Told:
        told = msgspec.json.decode(answer, type=Told)
        ids = [IntentId(one.message_id) for one in told.results if one.message_id]
        states = {intent.id: intent.state for intent in await self._edge.storage.find_intents(ids)}
        results = [
            msgspec.structs.replace(one, dispatch_state=states.get(IntentId(one.message_id or ""), one.dispatch_state))
            for one in told.results
        ]
        return Told(group_id=told.group_id, results=results)

    async def _addressed(self, parts: Sequence[Part]) -> list[Part]:
        """With their agents, where there are such. All that name no project, or one and the same, are read at once."""
        refs: defaultdict[str | None, dict[str, None]] = defaultdict(dict)
        for part in parts:
            if part.view is None:
                refs[part.project_id][part.ref] = None
        views = {home: await self._edge.storage.find_agents(list(wanted), home) for home, wanted in refs.items()}
        return [
            part if part.view else msgspec.structs.replace(part, view=views[part.project_id].get(part.ref))
            for part in parts
        ]

    # -- one part after the other --------------------------------------------------------------------------------

    async def _draft(self, parts: Sequence[Part], group_id: str) -> list[Drafted]:
        """In the order of the parts; one and the same message is said once to an agent that it names twice."""
        drafted: list[Drafted] = []
        keys: dict[str, tuple[IdempotencyKey, Result]] = {}
        told: set[tuple[int, str]] = set()
        for n, part in enumerate(parts):
            if not n % BREATH:
                await anyio.lowlevel.checkpoint()
            one = await self._said_before(part, keys) or await self._one(part, group_id)
            if part.key:
                keys.setdefault(part.key.key, (part.key, one.result))
            elif (once := (id(part.said), one.result.agent_id or part.to)) in told:
                continue
            else:
                told.add(once)
            drafted.append(one)
        return drafted

    async def _said_before(self, part: Part, keys: dict[str, tuple[IdempotencyKey, Result]]) -> Drafted | None:
        """What a part's own key was used for, in this call or an earlier one."""
        if part.key is None:
            return None
        try:
            if used := keys.get(part.key.key):
                return Drafted(result=_same(part.key, *used))
            found = await self._edge.storage.find_key(part.key)
            if found is None or found.intent_id is None:
                return None
            intents = await self._edge.storage.find_intents([found.intent_id])
            if not intents:
                raise NotFound(f"its message {found.intent_id} is past its retention")
        except (IdempotencyConflict, NotFound) as refusal:
            return Drafted(result=_refused(part.to, None, refusal))
        [intent] = intents
        return Drafted(result=_accepted(intent.agent_slug, intent.agent_id, intent.id, intent.state))

    async def _one(self, part: Part, group_id: str) -> Drafted:
        agent = None
        try:
            view = _found(part)
            agent = view.agent
            return await self._planned(part, view, group_id)
        except (Draining, StorageUnavailable):
            raise  # of the whole call
        except PointsmanError as refusal:
            return Drafted(result=_refused(part.to, agent, refusal))

    async def _planned(self, part: Part, view: AgentView, group_id: str) -> Drafted:
        """Raises: why this recipient cannot be told."""
        agent, sender, said = view.agent, self._sender, part.said
        about = Resource(kind="agent", id=agent.id, project_id=agent.project_id)
        await check_allowed(self._edge.hooks, sender, "agent.message", about)
        if agent.deleted_at is not None:
            raise InvalidState(f"agent {agent.slug} is deleted")
        check_phase(agent, hold=self._hold)
        envelope = said.envelope(sender, agent, broadcasted=self._broadcasted)
        message = said.row(sender, agent, envelope, group_id=group_id, broadcasted=self._broadcasted)
        call = self._operation.call(Op.MESSAGE, view, args=envelope, message=message, key=part.key)
        planned = await self._edge.dispatcher.plan(call)
        return Drafted(result=_accepted(agent.slug, agent.id, planned.intent.id, State.PENDING), planned=planned)


def _found(part: Part) -> AgentView:
    """Raises: Invalid, NotFound."""
    if part.view:
        return part.view
    if ":" in part.ref:
        raise Invalid(fields={"recipient": f"{part.ref} is no agent: only agents are told through a broker"})
    raise NotFound(f"there is no agent {part.ref}")


def _same(key: IdempotencyKey, used: IdempotencyKey, result: Result) -> Result:
    """Raises: IdempotencyConflict."""
    if used != key:
        raise IdempotencyConflict()
    return result


def _accepted(slug: str, agent_id: str, message_id: str, state: State) -> Result:
    return Result(recipient=f"agent:{slug}", agent_id=agent_id, message_id=message_id, dispatch_state=state)


def _refused(to: str, agent: Agent | None, refusal: PointsmanError) -> Result:
    failure = refusal.as_failure()
    return Result(
        recipient=f"agent:{agent.slug}" if agent else to,
        agent_id=agent.id if agent else None,
        error={"code": failure.code, "message": failure.message},
    )


def tell_fanout(resp: Responded, told: Told) -> None:
    """Where the sender finds later what became of each stands in `Location`."""
    resp.set_header("Location", f"{DISPATCHES}?groupId={told.group_id}")
    tell(resp, told, 202)
