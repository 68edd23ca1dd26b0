"""How the scripted broker carries out a request: once by dispatch id for ours, again each time for a stock one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio

from tests.harness.history import History
from tests.harness.inbox import Answer, Inbox
from tests.harness.replies import Personality, refused
from tests.harness.requests import Request
from tests.harness.script import Rule, Script
from tests.harness.sockets import Socket


@dataclass(eq=False)
class Running:
    """One dispatch id at work; repeats wait for `answer`."""

    ended: anyio.Event = field(default_factory=anyio.Event)
    cancelled: anyio.Event = field(default_factory=anyio.Event)
    answer: Answer | None = None


class Executor:
    """Effects are written to the history when they happen: one `effect` event is one effect."""

    def __init__(
        self,
        history: History,
        script: Script,
        inbox: Inbox,
        personality: Personality,
        *,
        ours: bool,
        newest: Callable[[], Socket | None],
    ) -> None:
        self.history = history
        self.script = script
        self.inbox = inbox
        self.personality = personality
        self.grove = ""
        """The project that the last request named: a stock heartbeat repeats it."""
        self._is_ours = ours
        self._newest = newest
        self._running: dict[str, Running] = {}
        self._agents: dict[str, anyio.Lock] = {}

    def cancel(self, dispatch: str) -> None:
        if running := self._running.get(dispatch):
            running.cancelled.set()

    async def ours(self, socket: Socket, request: Request, highest_epoch: int) -> None:
        """Answered ids from the inbox, running ids joined, new ids run, stale and late ones refused."""
        arrived = time.monotonic()
        dispatch = request.dispatch
        if dispatch is None:
            answer = self.personality.answer(request)
            await self._reply(socket, request, answer, self.script.take(request.op, request.agent, None))
            return
        if known := self.inbox.answers.get(dispatch):
            self.history.write("repeated", dispatch=dispatch, requestId=request.request_id)
            await self._reply(socket, request, known, Rule())
            return
        if running := self._running.get(dispatch):
            self.history.write("joined", dispatch=dispatch, requestId=request.request_id)
            await running.ended.wait()
            await self._reply(socket, request, running.answer or refused(503, "unavailable", "try again"), Rule())
            return
        epoch = request.number("X-Dispatch-Epoch")
        if epoch is not None and epoch < highest_epoch:
            stale = refused(412, "stale_epoch", f"epoch {epoch}, seen {highest_epoch}")
            await self._reply(socket, request, stale, Rule())
            return
        await self._run_new(socket, request, dispatch, arrived)

    async def _run_new(self, socket: Socket, request: Request, dispatch: str, arrived: float) -> None:
        running = self._running[dispatch] = Running()
        rule = self.script.take(request.op, request.agent, dispatch)
        try:
            async with self._agents.setdefault(str(request.agent), anyio.Lock()):
                if _too_late(request, arrived):
                    running.answer = refused(408, "deadline_passed", "its time was over when its turn came")
                else:
                    running.answer = await self._carry_out(socket, request, rule, running)
            self.inbox.finish(dispatch, running.answer)
        finally:
            del self._running[dispatch]
            running.ended.set()
        await self._reply(socket, request, running.answer, rule)

    async def stock(self, socket: Socket, request: Request) -> None:
        """No dedupe but that of `create`, by its `requestId`, kept on disk."""
        self.grove = request.query.get("groveId") or request.query.get("projectId") or self.grove
        key = f"create {request.json.get('requestId')}" if request.op == "create" else None
        if key in self.inbox.answers:
            self.history.write("repeated", dispatch=request.dispatch, requestId=request.request_id)
            await self._reply(socket, request, self.inbox.answers[key], Rule())
            return
        if key in self.inbox.begun:
            await self._reply(socket, request, refused(409, "conflict", "was killed at work"), Rule())
            return
        rule = self.script.take(request.op, request.agent, request.dispatch)
        if key:
            self.inbox.begin(key)
        answer = await self._carry_out(socket, request, rule, Running())
        if key:
            self.inbox.finish(key, answer)
        await self._reply(socket, request, answer, rule)

    async def _carry_out(self, socket: Socket, request: Request, rule: Rule, running: Running) -> Answer:
        if self._is_ours and rule.accepted:
            await socket.send({"type": "accepted", "requestId": request.request_id})
        answer = self._answer(request, rule)
        when = rule.effect or ("before" if answer.well else "none")
        if when == "before":
            self._effect(request)
        for event in rule.events:
            await socket.send(_tagged(event, request))
        cancelled = await self._hold_back(rule, running)
        if when == "after":
            if cancelled:
                return refused(499, "cancelled", "stopped on request")
            self._effect(request)
        return answer

    def _answer(self, request: Request, rule: Rule) -> Answer:
        """The personality's own answer changes its agents, so it is only asked when the rule lets it succeed."""
        if rule.status is not None and (rule.status >= 400 or rule.body is not None):
            return Answer(status=rule.status, body=rule.body)
        own = self.personality.answer(request)
        body = own.body if rule.body is None else rule.body
        if rule.merge:
            body = {**(body if isinstance(body, dict) else {}), **rule.merge}
        return Answer(status=rule.status or own.status, body=body)

    def _effect(self, request: Request) -> None:
        """Once for each dispatch id, also when the broker died between the effect and its answer."""
        dispatch = request.dispatch or ""
        if self._is_ours and dispatch in self.inbox.begun:
            self.history.write("found_done", dispatch=dispatch)
            return
        told = request.told()
        kept = {name: told[name] for name in ("op", "agent", "dispatch", "attempt", "epoch", "requestId")}
        run = request.json.get("runId") if isinstance(request.json, dict) else None
        self.inbox.begin(dispatch)
        self.history.write("effect", run=run, project=request.query.get("projectId"), **kept)

    async def _hold_back(self, rule: Rule, running: Running) -> bool:
        """Waits as the rule says; True when a cancel came first."""
        if not rule.delay and rule.gate is None:
            return running.cancelled.is_set()
        async with anyio.create_task_group() as race:

            async def hold() -> None:
                await anyio.sleep(rule.delay)
                if rule.gate is not None:
                    await self.script.gate(rule.gate).wait()
                race.cancel_scope.cancel()

            async def heed() -> None:
                await running.cancelled.wait()
                if rule.effect == "after":
                    race.cancel_scope.cancel()

            race.start_soon(hold)
            race.start_soon(heed)
        return running.cancelled.is_set()

    async def _reply(self, socket: Socket, request: Request, answer: Answer, rule: Rule) -> None:
        target = self._newest() if rule.on == "newest" else socket
        if rule.answer == "none" or target is None:
            self.history.write("unanswered", dispatch=request.dispatch, requestId=request.request_id)
            return
        for _ in range(2 if rule.answer == "twice" else 1):
            await target.answer(request.request_id, answer.status, answer.body, rule.shape, not self._is_ours)


def _too_late(request: Request, arrived: float) -> bool:
    left = request.number("X-Dispatch-Timeout-Ms")
    return left is not None and (time.monotonic() - arrived) * 1000 >= left


def _tagged(event: dict[str, Any], request: Request) -> dict[str, Any]:
    """An event frame; the payload names the intent unless the script says otherwise (None leaves it out)."""
    payload = {"agentId": request.header("X-Agent-Id"), "slug": request.agent, "dispatchId": request.dispatch}
    payload |= event.get("payload") or {}
    kept = {name: value for name, value in payload.items() if value is not None}
    return {"type": "event", "event": event.get("event", "agent_status"), "payload": kept}
