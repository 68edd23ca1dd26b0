"""One attempt to carry out an intent over the link that holds it: resolve, send, wait for the answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import anyio
import msgspec

from kernel import stock, wire
from kernel.agent import Agent
from kernel.clock import Clock
from kernel.environment import Environment, merged
from kernel.errors import (
    Failure,
    LinkLost,
    Misbehaved,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PayloadTooLarge,
    PointsmanError,
    StorageUnavailable,
)
from kernel.intent import Intent, State
from kernel.keyring import INTENT_VALUES, Keyring
from kernel.lanes import Work
from kernel.link import Exchange
from kernel.observe import Observer
from kernel.storage import Agents, AgentView
from kernel.tunnel import RUNS, Answer, Outcome, Subject, call_for, outcome_of

log = logging.getLogger(__name__)


class Hooks(Protocol):
    """The compiled hooks that an attempt calls."""

    @property
    def resolve_environment(self) -> Any: ...
    @property
    def around_dispatch(self) -> Any: ...


class Attempts:
    """Carries out what this node has claimed. It never routes again and never touches an intent's row."""

    def __init__(
        self,
        *,
        hooks: Hooks,
        agents: Agents,
        keyring: Keyring,
        clock: Clock,
        observer: Observer,
        mint: Callable[[Agent, str], str],
        address: Callable[[], str],
        late_grace: float,
        message_attempts: int,
    ) -> None:
        self._hooks = hooks
        self._agents = agents
        self._keyring = keyring
        self._clock = clock
        self._observer = observer
        self._mint = mint
        self._address = address
        self._message_attempts = message_attempts
        self._late_grace = late_grace
        """Seconds past the deadline in which a broker that was told to stop may still answer."""

    async def make(self, work: Work) -> Outcome:
        """Never raises but for cancellation: whatever goes wrong is an outcome. What nobody foresaw is one too: a hub
        that ended of it would hand it on to the next."""
        outcome = await self._made(work)
        if work.cancelled and outcome.kind in ("later", "dropped"):
            return _ended_unsent(
                work, State.CANCELLED, "cancelled", "it was cancelled, and the broker had put it off", 409
            )
        return outcome

    async def _made(self, work: Work) -> Outcome:
        try:
            return self._not_sent(work) or await self._around(work, await self._subject(work))
        except LinkLost:
            return Outcome(kind="lost", reason="link_lost")
        except StorageUnavailable:
            return Outcome(kind="dropped", reason="storage_unavailable", retry_in=1.0)
        except Misbehaved as fault:
            return _refused(work, "plugin_fault", fault)
        except PointsmanError as fault:
            return _refused(work, fault.code, fault)
        except Exception:
            log.exception("dispatch %s met a fault of this hub", work.intent.id)
            return _broke(work)

    def _not_sent(self, work: Work) -> Outcome | None:
        """Why it must not be sent at all: its link is gone, a caller cancelled it, its time is over, or not now: its
        broker is paused."""
        if work.cancelled or self._clock.monotonic() >= work.until:
            return unsent(work)
        if not work.link.open:
            return Outcome(kind="lost", reason="link_lost")
        return Outcome(kind="dropped", reason="paused") if work.link.paused else None

    # -- resolve -------------------------------------------------------------------------------------------------

    async def _subject(self, work: Work) -> Subject | None:
        intent = work.intent
        if intent.op not in RUNS:
            return None
        started = self._clock.monotonic()
        view = work.view or await self._agents.find_agent(intent.agent_id)
        if view is None or view.agent.deleted_at is not None:
            raise NotFound(f"agent {intent.agent_slug} is gone: it cannot be started")
        subject = Subject(
            agent=view.agent,
            project=view.project,
            environment=await self._environment(intent, view),
            values=self._values(work),
            token=self._mint(view.agent, intent.run_id or ""),
            hub=self._address(),
        )
        self._observer.stage("resolve", self._clock.monotonic() - started)
        return subject

    async def _environment(self, intent: Intent, view: AgentView) -> Environment:
        answers = await self._hooks.resolve_environment.gather(view.agent, intent)
        for answer in answers:
            if wrong := _wrong_with(answer.value):
                told = f"plugin {answer.plugin} answered resolve_environment with {wrong}"
                raise Misbehaved(told, plugin=answer.plugin, hook="resolve_environment")
        return merged([answer.value for answer in answers])

    def _values(self, work: Work) -> dict[str, str]:
        if work.values is not None:
            return work.values
        if work.intent.sealed is None:
            return {}
        opened: dict[str, str] = json.loads(self._keyring.open(INTENT_VALUES, work.intent.sealed, work.intent.id))
        return opened

    # -- send ----------------------------------------------------------------------------------------------------

    async def _around(self, work: Work, subject: Subject | None) -> Outcome:
        async def send(_intent: Intent | None = None) -> Outcome:
            return await self._send(work, subject)

        outcome = await self._hooks.around_dispatch.call(work.intent, send)
        assert isinstance(outcome, Outcome)
        return outcome

    async def _send(self, work: Work, subject: Subject | None) -> Outcome:
        """Whether it may be sent is asked once more: to resolve takes time."""
        not_sent = self._not_sent(work)
        if not_sent:
            return not_sent
        try:
            outcome = await self._carry_out(work, subject)
        except PayloadTooLarge as fault:
            return _refused(work, fault.code, fault)
        return outcome or _silent()

    async def _carry_out(self, work: Work, subject: Subject | None) -> Outcome | None:
        link, intent = work.link, work.intent
        if link.stock:
            return await stock.send(intent, subject, partial(self.exchange, work), self._message_attempts)
        answer = await self.exchange(work, call_for(intent, subject, suspends=link.can(wire.SUSPEND), by_id=False))
        return outcome_of(intent, answer, message_attempts=self._message_attempts) if answer else None

    async def exchange(self, work: Work, call: wire.Call) -> Answer | None:
        """Send one request and wait for its answer; None when none came by the deadline and its grace, and when the
        deadline passed before a further request of the same operation.

        Raises: LinkLost, PayloadTooLarge.
        """
        if work.exchange and self._clock.monotonic() >= work.until:
            return None
        started = self._clock.monotonic()
        exchange = work.link.request(work.intent.id, call, self._headers(work))
        work.exchange = exchange
        try:
            response = await self._answer(work, exchange)
        finally:
            work.link.forget(exchange)
        if exchange.sent_at:
            self._observer.stage("send", exchange.queued)
        self._observer.stage("answer", self._clock.monotonic() - started)
        if response is None:
            return None
        return Answer(status=response.status_code, headers=response.headers, body=response.body)

    async def _answer(self, work: Work, exchange: Exchange) -> wire.Response | None:
        """What was sent ends with the broker's answer, not by a clock; but at its deadline the broker is told to
        stop, and if it stays silent even then nobody will ever know."""
        with anyio.move_on_after(max(0.0, work.until - self._clock.monotonic())):
            return await exchange.result()
        work.link.cancel(work.intent.id)
        with anyio.move_on_after(self._late_grace):
            return await exchange.result()
        return None

    def _headers(self, work: Work) -> dict[str, str]:
        intent = work.intent
        remaining = max(0, int((work.until - self._clock.monotonic()) * 1000))
        headers = {
            wire.DISPATCH_ID: intent.id,
            wire.DISPATCH_ATTEMPT: str(intent.attempts),
            wire.DISPATCH_EPOCH: str(work.link.session.epoch),
            wire.DISPATCH_TIMEOUT: str(remaining),
            wire.AGENT_ID: intent.agent_id,
        }
        if intent.traceparent:
            headers["traceparent"] = intent.traceparent
        return headers


def _wrong_with(answer: object) -> str | None:
    """Why a plugin's answer cannot be sent to a broker, without a word of what is in it."""
    if not isinstance(answer, Environment):
        return f"{type(answer).__name__}, not with an Environment"
    try:
        msgspec.json.decode(msgspec.json.encode(answer), type=Environment)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        return "names or values that are no texts"
    return None


def unsent(work: Work) -> Outcome:
    """What becomes of work that waited and was not sent: a caller cancelled it, or its time is over. Whether it
    still is in these hands, the write of its end is told by the row."""
    if work.cancelled:
        return _ended_unsent(work, State.CANCELLED, "cancelled", "it was cancelled before it was sent", 409)
    return _ended_unsent(work, State.EXPIRED, "broker_timeout", "its deadline passed before it was sent", 504)


def _refused(work: Work, code: str, fault: PointsmanError) -> Outcome:
    """Nothing was sent by this attempt: it failed here. What an earlier one did, nobody knows."""
    status = 502 if isinstance(fault, (Misbehaved, Misconfigured)) else fault.status
    error = Failure(code=code, message=fault.message, status=status, details=fault.details)
    if work.retried:
        message = f"{fault.message}; but an earlier attempt may have been carried out"
        error = Failure(code="outcome_unknown", message=message, status=504, details=fault.details)
    return Outcome(kind="end", reason=code, state=State.FAILED, error=error)


def _ended_unsent(work: Work, state: State, code: str, message: str, status: int) -> Outcome:
    """Only a first attempt may be told as "did not happen": an earlier one may have been carried out."""
    if work.retried:
        code, status = "outcome_unknown", 504
        message = f"{message}, but an earlier attempt may have been carried out"
    error = Failure(code=code, message=message, status=status)
    return Outcome(kind="end", reason=code if state is State.CANCELLED else "deadline", state=state, error=error)


def _broke(work: Work) -> Outcome:
    fault = PointsmanError("something went wrong in the hub; its log says what")
    if work.exchange is None:
        return _refused(work, fault.code, fault)
    error = OutcomeUnknown(f"it was sent, and then {fault.message}: it may or may not have happened").as_failure()
    return Outcome(kind="end", reason=fault.code, state=State.FAILED, error=error)


def _silent() -> Outcome:
    error = Failure(
        code="outcome_unknown",
        message="the broker was sent it and gave no answer by its deadline: it may or may not have happened",
        status=504,
    )
    return Outcome(kind="end", reason="deadline", state=State.EXPIRED, error=error)
