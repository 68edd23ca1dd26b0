"""Why an intent is where it is: a code for programs, a sentence for people, the time of the next attempt (P10)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec

from kernel.agent import Phase
from kernel.broker import Broker
from kernel.clock import Instant
from kernel.config.settings import Settings
from kernel.directs import LONGEST_PAUSE
from kernel.intent import Intent, Lane, Op, State
from kernel.storage import LaneView

Code = Literal[
    "waiting_broker",
    "waiting_agent",
    "waiting_lane",
    "waiting_owner",
    "waiting_retry",
    "paused",
    "sent",
    "accepted",
    "ended",
]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    code: Code
    sentence: str
    next_attempt_at: Instant | None = None
    """None where nothing is tried by itself: it is in flight, it ended, or it waits for somebody."""


def explained(view: LaneView, settings: Settings, now: Instant) -> Explanation:
    """What holds an intent up, the first reason first. `now` only serves the words."""
    match view.intent.state:
        case State.PENDING | State.NONE:
            return _pending(view, settings, now)
        case State.IN_PROGRESS:
            return _in_progress(view, settings, now)
        case _:
            return Explanation(code="ended", sentence=_ended(view.intent, now))


# -- pending ------------------------------------------------------------------------------------------------


def _pending(view: LaneView, settings: Settings, now: Instant) -> Explanation:
    found = _paused(view) or _no_broker(view, now) or _behind(view, now) or _agent_rests(view) or _too_early(view, now)
    if found:
        return _with_deadline(found, view.intent, now)
    broker = view.broker
    assert broker is not None, "without a broker it waits for one"
    sentence = f"Broker {broker.name} is connected; the hub that holds its socket takes it within seconds."
    if not broker.online:
        sentence = f"Broker {broker.name} is called at its endpoint; the hub that does takes it within seconds."
    soon = Instant(now + int(settings.bus.poll_healthy * 1_000_000))
    return Explanation(code="waiting_owner", sentence=sentence, next_attempt_at=soon)


def _paused(view: LaneView) -> Explanation | None:
    if view.broker is None or not view.broker.paused:
        return None
    return Explanation(code="paused", sentence=f"Broker {view.broker.name} is paused: it goes out once it is resumed.")


def _no_broker(view: LaneView, now: Instant) -> Explanation | None:
    broker = view.broker
    if broker is None:
        return Explanation(code="waiting_broker", sentence="The broker was deleted: nobody can take it.")
    if broker.online or broker.connection_kind == "direct":
        return None
    if broker.endpoint:
        sentence = (
            f"Broker {broker.name} has no socket: a hub asks for it at its endpoint at least every "
            f"{LONGEST_PAUSE:.0f} s, and it goes out when that answers or the broker connects."
        )
        return Explanation(code="waiting_broker", sentence=sentence)
    since = f" since {_when(broker.disconnected_at, now)}" if broker.disconnected_at else ""
    state = f"is not connected{since}" if broker.connection_epoch else "has never connected"
    return Explanation(
        code="waiting_broker", sentence=f"Broker {broker.name} {state}: it goes out when the broker is there."
    )


def _behind(view: LaneView, now: Instant) -> Explanation | None:
    if view.behind is None:
        return None
    before = view.behind
    sentence = (
        f"{_subject(before)} {before.id} of the same agent comes first and is {_word(before.state)} "
        f"since {_when(before.claimed_at or before.created_at, now)}."
    )
    return Explanation(code="waiting_lane", sentence=sentence)


def _agent_rests(view: LaneView) -> Explanation | None:
    agent = view.agent
    if view.intent.lane is not Lane.MESSAGE or agent is None or agent.phase is Phase.RUNNING:
        return None
    sentence = f"Agent {agent.slug} is {agent.phase}: messages are delivered while it runs."
    return Explanation(code="waiting_agent", sentence=sentence)


def _too_early(view: LaneView, now: Instant) -> Explanation | None:
    intent = view.intent
    if intent.next_attempt_at is None or intent.next_attempt_at <= now:
        return None
    why = f" ({intent.error.message})" if intent.error else ""
    sentence = (
        f"Attempt {intent.attempts} did not end it{why}; the next one is at {_when(intent.next_attempt_at, now)}."
    )
    return Explanation(code="waiting_retry", sentence=sentence, next_attempt_at=intent.next_attempt_at)


def _with_deadline(found: Explanation, intent: Intent, now: Instant) -> Explanation:
    until = f" It is given up at {_when(intent.deadline_at, now)}."
    return msgspec.structs.replace(found, sentence=found.sentence + until)


# -- in an owner's hands ------------------------------------------------------------------------------------


def _in_progress(view: LaneView, settings: Settings, now: Instant) -> Explanation:
    intent = view.intent
    if not view.owner_alive or not _still_owned(intent, view.broker):
        sentence = f"Hub {intent.claimed_by} had taken it and no longer holds the broker: it is driven again."
        soon = Instant(now + int(settings.sweep.stuck * 1_000_000))
        return Explanation(code="waiting_owner", sentence=sentence, next_attempt_at=soon)
    name = view.broker.name if view.broker else intent.broker_id
    if intent.accepted_at:
        sentence = f"Broker {name} took it at {_when(intent.accepted_at, now)} and works on it."
        return Explanation(code="accepted", sentence=sentence)
    if intent.sent_at:
        sentence = f"It was sent to broker {name} at {_when(intent.sent_at, now)}; the answer has not come yet."
        return Explanation(code="sent", sentence=sentence)
    before = _behind(view, now)
    if before:
        return before
    sentence = f"Hub {intent.claimed_by} took it at {_when(intent.claimed_at or now, now)} and is about to send it."
    return Explanation(code="waiting_owner", sentence=sentence)


def _still_owned(intent: Intent, broker: Broker | None) -> bool:
    return broker is not None and intent.claimed_epoch == broker.connection_epoch


# -- ended, and words ---------------------------------------------------------------------------------------


def _ended(intent: Intent, now: Instant) -> str:
    when = _when(intent.ended_at or now, now)
    if intent.state is State.DONE:
        return f"Done at {when}: the broker acknowledged it at attempt {intent.attempts}."
    why = f": {intent.error.message} ({intent.error.code})" if intent.error else ""
    return f"{_word(intent.state).capitalize()} at {when}{why}."


def _subject(intent: Intent) -> str:
    return "The message" if intent.op is Op.MESSAGE else f"The {intent.op.replace('_', ' ')}"


def _word(state: State) -> str:
    return "in progress" if state is State.IN_PROGRESS else state.value


def _when(instant: Instant, now: Instant) -> str:
    """`2026-11-25 09:30:12 UTC (4 s ago)`"""
    moment = datetime.fromtimestamp(instant / 1_000_000, UTC)
    seconds = (instant - now) / 1_000_000
    distance = f"in {_span(seconds)}" if seconds > 0 else f"{_span(-seconds)} ago"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({distance})"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
