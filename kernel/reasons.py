"""Why an intent ended as it did, in words; and the words that explanations are made of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from kernel.clock import Instant
from kernel.intent import Intent, Op, State
from kernel.transition import Transition


def told(intent: Intent, history: Sequence[Transition], now: Instant) -> str:
    """Why it ended as it did: the broker's word, the clock's, a caller's, or that nobody can know."""
    last = history[-1] if history else None
    at = when(intent.ended_at or now, now)
    if intent.state is State.DONE:
        return _done(intent, last, at)
    if intent.error and intent.error.code == "outcome_unknown":
        return _unknown(intent, last, at)
    match intent.state:
        case State.CANCELLED:
            return _cancelled(intent, last, at)
        case State.EXPIRED:
            return _expired(intent, last, at)
        case _:
            return _failed(intent, last, at)


def _done(intent: Intent, last: Transition | None, at: str) -> str:
    if last and last.reason == "unknown_there":
        return f"Done at {at}: the broker does not know the agent, so nothing was left to be deleted."
    tries = "" if intent.attempts == 1 else f" at the {ordinal(intent.attempts)} attempt"
    return f"Done at {at}: the broker acknowledged it{tries}{_taken(intent)}."


def _taken(intent: Intent) -> str:
    if intent.ended_at is None or intent.sent_at is None or intent.ended_at < intent.sent_at:
        return ""
    return f", {span((intent.ended_at - intent.sent_at) / 1_000_000)} after it was sent"


def _cancelled(intent: Intent, last: Transition | None, at: str) -> str:
    reason, detail = (last.reason, last.detail) if last else ("", {})
    if reason == "superseded":
        by = f" by {detail.get('op', 'operation')} {detail['by']}" if detail.get("by") else ""
        return f"Cancelled at {at}, superseded{by}: {_message(intent)} ({_code(intent)})."
    if reason == "agent_deleted":
        return f"Cancelled at {at}: its agent was deleted before it was delivered."
    by = f" by {detail['by']}" if detail.get("by") else ""
    return f"Cancelled at {at}{by}: {_message(intent)} ({_code(intent)})."


def _expired(intent: Intent, last: Transition | None, at: str) -> str:
    because = {
        "deadline": f"its deadline, {clock(intent.deadline_at)}, passed before anybody sent it",
        "window": "nobody took it for as long as its caller waited",
        "nobody_home": "nobody held its broker, and nobody asked for it to be held until somebody does",
    }
    why = because.get(last.reason if last else "", "it was never sent")
    return f"Expired at {at}, because {why}: {_message(intent)} ({_code(intent)}). It did not happen."


def _failed(intent: Intent, last: Transition | None, at: str) -> str:
    tries = "" if intent.attempts <= 1 else f" at the {ordinal(intent.attempts)} attempt"
    if _code(intent) == "poison":
        return (
            f"Failed at {at} as poison: the broker's process died {intent.broker_crashes} times while it had it in "
            "hand; it is not sent again."
        )
    if last and last.reason.startswith("broker_"):
        answered = last.reason.removeprefix("broker_")
        return f"Failed at {at}{tries}, because the broker answered {answered}: {_message(intent)} ({_code(intent)})."
    return f"Failed at {at}{tries}: {_message(intent)} ({_code(intent)})."


def _unknown(intent: Intent, last: Transition | None, at: str) -> str:
    """Nobody can know, and why not."""
    if last and last.from_state == State.IN_PROGRESS:
        why = f"the {ordinal(intent.attempts)} attempt was in the broker's hands, and no answer came"
    elif intent.attempts:
        why = f"it had been taken {times(intent.attempts)} before, and whoever had it never told how that went"
    else:
        why = "the database was away since it was recorded, and may have lost that it was taken"
    return (
        f"{word_of(intent.state).capitalize()} at {at} with an outcome that is not known: {why}. "
        f"It may or may not have happened: {_message(intent)} (outcome_unknown)."
    )


def _message(intent: Intent) -> str:
    return intent.error.message if intent.error else "no reason was kept"


def _code(intent: Intent) -> str:
    return intent.error.code if intent.error else str(intent.state)


# -- words --------------------------------------------------------------------------------------------------


def name_of(intent: Intent) -> str:
    return "The message" if intent.op is Op.MESSAGE else f"The {intent.op.replace('_', ' ')}"


def word_of(state: State) -> str:
    return "in progress" if state is State.IN_PROGRESS else state.value


def ordinal(n: int) -> str:
    """`1st`, `2nd`, `3rd`, `4th`, … `11th`"""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def clock(instant: Instant) -> str:
    """`2026-11-25 09:30:12 UTC`"""
    return f"{datetime.fromtimestamp(instant / 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def when(instant: Instant, now: Instant) -> str:
    """`2026-11-25 09:30:12 UTC (4 s ago)`"""
    seconds = (instant - now) / 1_000_000
    distance = f"in {span(seconds)}" if seconds > 0 else f"{span(-seconds)} ago"
    return f"{clock(instant)} ({distance})"


def span(seconds: float) -> str:
    """`250 ms`, `4 s`, `15 min`"""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
