"""Serves tunnelled requests: each dispatch id takes effect once, in its agent's turn, before its deadline."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext

import anyio
import anyio.abc

from broker.agents import Agents
from broker.answer import Answer, Refusal, refused, said
from broker.calls import READS, STARTS, Call, read_call
from broker.endpoints import Endpoints
from broker.inbox import Changes, Inbox, Operation, Unkept
from broker.plan import Plan
from broker.recovery import Recovery
from broker.report import Reporter
from broker.settings import BrokerSettings
from broker.signature import Signatures
from broker.turns import Turns
from broker.work import Asker, Work
from kernel import wire

log = logging.getLogger(__name__)

BESIDE = frozenset({"message", "exec"})
"""Operations whose answer says nothing of how the agent is: its reports go on meanwhile."""
_NOT_BEGUN = refused(503, "not_begun", "nothing took effect")
MOST_WORK = 1_024
"""Requests in hand; more are told to come again."""
_AGAIN = 2.0
"""Seconds between attempts at what cannot be done now, as writing down an answer on a full disk."""


class Desk:
    """Takes requests from any session; what it works at outlives the session that asked."""

    def __init__(
        self,
        settings: BrokerSettings,
        inbox: Inbox,
        agents: Agents,
        endpoints: Endpoints,
        recovery: Recovery,
        reporter: Reporter,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._settings = settings
        self._inbox = inbox
        self._agents = agents
        self._endpoints = endpoints
        self._recovery = recovery
        self._reporter = reporter
        self._tasks = tasks
        self._signatures = Signatures()
        self._turns = Turns()
        self._works: dict[str, Work] = {}
        self._in_hand = 0

    # -- taking requests ---------------------------------------------------------------------------------------------

    def take(self, asker: Asker, request: wire.Request) -> None:
        """Never waits: called by the task that reads the socket. A `cancel` after it finds it."""
        try:
            call = self._read(asker, request)
        except Refusal as refusal:
            asker.answer(request, refusal.answer)
            return
        if call.op == "cancel":
            asker.answer(request, self._cancel(call))
            return
        known = self._works.get(call.id)
        if known and call.op not in READS:
            known.join(asker, request, call)
            return
        if self._in_hand >= MOST_WORK:
            asker.answer(request, refused(503, "busy", "this broker has too much to do", retry_after=1))
            return
        self._in_hand += 1
        if call.op in READS:
            self._tasks.start_soon(self._look, asker, request, call)
        else:
            self._take_up(asker, request, call)

    def cancel(self, frame: wire.Cancel) -> None:
        """Stop what was asked, if it can be; its answer still comes."""
        for work in self._works.values():
            if work.id == frame.dispatch_id or any(request.request_id == frame.request_id for _, request in work.asked):
                work.cancelled.set()

    def _cancel(self, call: Call) -> Answer:
        """As the frame of that name, for a hub that calls over HTTP; one that lost the broker cancels nothing."""
        if self._is_stale(call.epoch):
            return _stale(call.epoch, self._inbox.epoch)
        self.cancel(wire.Cancel(request_id="", dispatch_id=call.ref))
        return said(202, {"dispatchId": call.ref})

    def _read(self, asker: Asker, request: wire.Request) -> Call:
        """Raises: Refusal. Nothing of a request that is not signed is looked at, and its id is not touched."""
        if request.path != "/healthz":
            self._signatures.check(asker.broker_id, asker.secret, request)
        return read_call(request)

    def _take_up(self, asker: Asker, request: wire.Request, call: Call) -> None:
        """One task an id: repeats join it."""
        work = self._works[call.id] = Work(call.id, call.epoch, call.until)
        work.join(asker, request, call)
        self._tasks.start_soon(self._work, work, call, asker.hub)

    async def _look(self, asker: Asker, request: wire.Request, call: Call) -> None:
        """Reading has no effect that could happen twice; a hub that lost the broker is refused all the same."""
        try:
            if self._is_stale(call.epoch):
                answer = _stale(call.epoch, self._inbox.epoch)
            elif call.until <= time.monotonic():
                answer = _too_late()
            else:
                answer = self._fit(self._about() if call.op == "info" else await self._endpoints.read(call))
        except Refusal as refusal:
            answer = refusal.answer
        finally:
            self._in_hand -= 1
        asker.answer(request, answer)

    def _about(self) -> Answer:
        """What a `connect` frame would say, and what an `accepted` one would: to a hub that calls over HTTP."""
        working = [work.id for work in self._works.values() if work.begun]
        return said(200, {**self._endpoints.about(), "epoch": self._inbox.epoch, "working": working})

    # -- working -----------------------------------------------------------------------------------------------------

    async def _work(self, work: Work, call: Call, hub: str) -> None:
        try:
            answer = await self._inbox.find(work.id) or await self._new(work, call, hub)
        except Unkept as fault:
            answer = _unkept(fault)
        finally:
            self._in_hand -= 1
        self._over(work, answer)

    async def _new(self, work: Work, call: Call, hub: str) -> Answer:
        if call.op == "exec":
            return await self._in_turn(work, call, hub)
        async with self._turns.of(self._agents.turn(call)):
            return await self._in_turn(work, call, hub)

    async def _in_turn(self, work: Work, call: Call, hub: str) -> Answer:
        if self._is_stale(work.epoch):
            return _stale(work.epoch, self._inbox.epoch)
        await self._inbox.see_epoch(work.epoch or 0)  # over HTTP a new one comes with the request itself
        if work.until <= time.monotonic():
            return _too_late()
        try:
            if work.cancelled.is_set():
                raise Refusal(499, "cancelled", "it was cancelled before it began")
            plan = self._endpoints.plan(call, hub)
        except Refusal as refusal:
            if refusal.answer.final:
                await self._inbox.finish(work.id, refusal.answer, Changes(), work.remaining)
            return refusal.answer
        begins = Changes(kept=(plan.record,)) if plan.record else Changes()
        await self._inbox.begin(work.id, plan.operation, begins, work.remaining)
        if plan.record:
            self._agents.put(plan.record)
        with self._reporter.held(plan.operation.agent_id) if call.op not in BESIDE else nullcontext():
            return await self._begun(work, plan)

    async def _begun(self, work: Work, plan: Plan) -> Answer:
        """From here on a crash leaves an id that runs: it is carried out, and its end written down."""
        work.begin()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tell_progress, work, plan.operation)
            answer = self._fit(await self._perform(work, plan))
            tasks.cancel_scope.cancel()
        await self._settle(work, plan.operation, answer)
        return answer

    async def _perform(self, work: Work, plan: Plan) -> Answer:
        try:
            return await plan.perform(work.cancelled)
        except Refusal as refusal:
            return refusal.answer
        except OSError as fault:
            log.exception("%s of agent %s failed", plan.operation.op, plan.operation.agent_id)
            found = await self._recover(work.id, plan.operation)
            return found or refused(500, "internal_error", f"the broker could not do it: {fault}")

    async def _settle(self, work: Work, operation: Operation, answer: Answer) -> None:
        """Write down how it ended. While that fails the answer is true all the same, and kept in memory."""
        while True:
            changes = self._agents.changes(operation.agent_id)
            try:
                if answer.final:
                    await self._inbox.finish(work.id, answer, changes, work.remaining)
                else:
                    await self._inbox.forget(work.id, changes)
            except Unkept as fault:
                log.error("the end of %s is not written down yet: %s", work.id, fault)
                work.tell(answer)
                await anyio.sleep(_AGAIN)
            else:
                return

    def _over(self, work: Work, answer: Answer) -> None:
        del self._works[work.id]
        work.tell(answer)

    async def _tell_progress(self, work: Work, operation: Operation) -> None:
        await anyio.sleep(self._settings.first_progress)
        while True:
            self._reporter.progress(operation.agent_id, work.id, operation.op)
            await anyio.sleep(self._settings.progress)

    # -- after a crash -----------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        """Take up what ran when the last broker died; returns when each has its agent's turn. Raises: Unkept."""
        for dispatch_id, operation in await self._inbox.running():
            work = self._works[dispatch_id] = Work(dispatch_id, None, float("inf"))
            work.begun = True
            await self._tasks.start(self._resume, work, operation)

    async def _resume(self, work: Work, operation: Operation, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        record = self._agents.get(operation.agent_id)
        turn = f"{record.project_id}/{record.slug}" if record else operation.agent_id
        with self._reporter.held(operation.agent_id):
            async with self._turns.of(turn):
                task_status.started()
                answer = await self._recover(work.id, operation)
                log.info("%s ran when the broker died: %s", work.id, answer.status if answer else "nothing took effect")
                await self._settle(work, operation, self._fit(answer) if answer else _NOT_BEGUN)
        if answer:
            self._over(work, self._fit(answer))
        else:
            self._anew(work)

    async def _recover(self, dispatch_id: str, operation: Operation) -> Answer | None:
        """As long as it cannot be told whether a start took effect, nothing else is done to its agent."""
        while True:
            try:
                return await self._recovery.settle(dispatch_id, operation)
            except Refusal as refusal:
                if refusal.answer.final:
                    return refusal.answer
            except OSError:
                log.exception("what became of %s cannot be told yet", dispatch_id)
                if operation.op not in STARTS:
                    return None
            await anyio.sleep(_AGAIN)

    def _anew(self, work: Work) -> None:
        """Nothing of it took effect: who asked for it meanwhile asks anew."""
        del self._works[work.id]
        for asker, request in work.asked:
            call = read_call(request)
            known = self._works.get(call.id)
            if known:
                known.join(asker, request, call)
            else:
                self._in_hand += 1
                self._take_up(asker, request, call)

    # -- refusals ----------------------------------------------------------------------------------------------------

    def _is_stale(self, epoch: int | None) -> bool:
        return epoch is not None and epoch < self._inbox.epoch

    def _fit(self, answer: Answer) -> Answer:
        """An answer that needs a larger frame than the hub takes is replaced (design/wire.md, Limits)."""
        if len(answer.body) * 4 // 3 + 1_024 <= self._settings.frame_limit:
            return answer
        return refused(413, "response_too_large", f"the answer has {len(answer.body)} bytes: it does not fit a frame")


def _stale(epoch: int | None, highest: int) -> Answer:
    return refused(412, "stale_epoch", f"epoch {epoch} is over: this broker has seen {highest}")


def _too_late() -> Answer:
    return refused(408, "deadline_passed", "its time was over when its turn came: it was not run")


def _unkept(fault: Unkept) -> Answer:
    return refused(503, "inbox_unavailable", f"nothing was done: {fault}", retry_after=5)
