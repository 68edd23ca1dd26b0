"""How operations go to a broker without capabilities, which keeps no inbox of ours (design/wire.md, "tried")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlencode

import msgspec

from kernel.agent import Phase
from kernel.intent import Intent, Op
from kernel.tunnel import Answer, Outcome, Subject, call_for, outcome_of, parsed
from kernel.wire import Call

Exchange = Callable[[Call], Awaitable[Answer | None]]
"""Sends one request and waits for its answer; None when none came in time."""


async def send(
    intent: Intent, subject: Subject | None, exchange: Exchange, message_attempts: int = 3
) -> Outcome | None:
    """Carry one intent out; None when the broker stayed silent."""
    match intent.op:
        case Op.RESTART:
            return await _restart(intent, subject, exchange)
        case Op.START if intent.attempts > 1 and subject and intent.args.get("task") is not None:
            return await _start_again(intent, subject, exchange)
        case Op.CREATE:
            return await _create(intent, subject, exchange)
        case Op.MESSAGE:
            answer = await exchange(call_for(intent, subject, suspends=False, by_id=True))
            return outcome_of(intent, answer, message_attempts=message_attempts) if answer else None
        case _:
            return await _plain(intent, subject, exchange)


async def _plain(intent: Intent, subject: Subject | None, exchange: Exchange) -> Outcome | None:
    answer = await exchange(call_for(intent, subject, suspends=False, by_id=True))
    return outcome_of(intent, answer) if answer else None


async def _restart(intent: Intent, subject: Subject | None, exchange: Exchange) -> Outcome | None:
    """It knows no restart that is safe to repeat: stop, then start; both are."""
    stopped = await _plain(msgspec.structs.replace(intent, op=Op.STOP), None, exchange)
    if stopped is None or stopped.kind != "end" or stopped.error:
        return stopped
    return await _plain(msgspec.structs.replace(intent, op=Op.START), subject, exchange)


async def _start_again(intent: Intent, subject: Subject, exchange: Exchange) -> Outcome | None:
    """A start with a task makes a running agent anew, so a repeat asks first: running now and not before is done."""
    query = urlencode({"projectId": intent.project_id, "groveId": intent.project_id})
    asked = await exchange(Call(method="GET", path=f"/api/v1/agents/{quote(intent.agent_slug, safe='')}", query=query))
    if asked is None:
        return None
    if asked.status == 200 and _runs(asked) and subject.agent.phase is not Phase.RUNNING:
        return outcome_of(intent, asked)
    return await _plain(intent, subject, exchange)


def _runs(answer: Answer) -> bool:
    said = parsed(answer.body)
    told = said.get("agent", said) if isinstance(said, dict) else {}
    return isinstance(told, dict) and "running" in (told.get("phase"), told.get("status"))


async def _create(intent: Intent, subject: Subject | None, exchange: Exchange) -> Outcome | None:
    """409 `conflict` says that this creation is under way: later. After a lost socket it was killed at work, and the
    broker will say so for a day: it is asked once more under another request id."""
    call = call_for(intent, subject, suspends=False, by_id=True)
    answer = await exchange(call)
    if answer is None or not _in_conflict(answer):
        return outcome_of(intent, answer) if answer else None
    if intent.attempts == 1:
        return Outcome(kind="later", reason="broker_409", retry_in=1.0, failures=1)
    again = call.body.replace(f'"requestId":"{intent.id}"'.encode(), f'"requestId":"{intent.id}-2"'.encode(), 1)
    answer = await exchange(msgspec.structs.replace(call, body=again))
    return outcome_of(intent, answer) if answer else None


def _in_conflict(answer: Answer) -> bool:
    said = parsed(answer.body)
    error = said.get("error") if isinstance(said, dict) else None
    return answer.status == 409 and isinstance(error, dict) and error.get("code") == "conflict"
