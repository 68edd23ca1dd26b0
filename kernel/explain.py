"""Why an intent is where it is: a code for programs, a sentence for people, the time of the next attempt (P10)."""

from __future__ import annotations

from typing import Literal

import msgspec

from kernel.agent import Phase
from kernel.broker import Broker
from kernel.clock import Instant
from kernel.config.settings import Settings
from kernel.intent import Lane, State
from kernel.reasons import name_of, ordinal, span, told, when, word_of
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
OVERDUE = 3.0
"""Polls after which it is told that a hub which could take an intent does not."""


AT_ONCE = 3.0
"""Seconds in which what was claimed is sent, and its row tells so, if nothing stands before it."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    code: Code
    sentence: str
    next_attempt_at: Instant | None = None
    """None where nothing is tried by itself: it is in flight, it ended, or it waits for somebody."""


def explained(view: LaneView, settings: Settings, version: str) -> Explanation:
    """What holds an intent up, the first reason first. `version` is that of the hub that explains."""
    match view.intent.state:
        case State.PENDING | State.NONE:
            return _with_deadline(Pending(view, settings, version).reason(), view)
        case State.IN_PROGRESS:
            return InHand(view, settings).reason()
        case _:
            return Explanation(code="ended", sentence=told(view.intent, view.history, view.now))


def _with_deadline(found: Explanation, view: LaneView) -> Explanation:
    until = f" It is given up at {when(view.intent.deadline_at, view.now)}."
    return msgspec.structs.replace(found, sentence=found.sentence + until)


class Situation:
    """One intent that has not ended, and what is known around it."""

    def __init__(self, view: LaneView, settings: Settings) -> None:
        self.intent = view.intent
        self.view = view
        self.now = view.now
        self.settings = settings
        self.broker_name = view.broker.name if view.broker else view.intent.broker_id

    def when(self, instant: Instant) -> str:
        return when(instant, self.now)

    def after(self, instant: Instant, seconds: float) -> Instant:
        """So long after `instant`, but never before now."""
        return max(self.now, Instant(instant + int(seconds * 1_000_000)))

    def age(self, since: Instant) -> float:
        return (self.now - since) / 1_000_000

    def behind(self) -> Explanation | None:
        before = self.view.behind
        if before is None:
            return None
        sentence = (
            f"{name_of(before)} {before.id} of the same agent comes first and is {word_of(before.state)} "
            f"since {self.when(before.claimed_at or before.created_at)}."
        )
        return Explanation(code="waiting_lane", sentence=sentence)

    def window_full(self) -> str | None:
        broker, flying = self.view.broker, self.view.in_flight
        window = (broker and broker.window) or self.settings.dispatch.window
        if flying < window:
            return None
        return (
            f"Broker {self.broker_name} works on {flying} requests, as many as it takes at once: one has to end first."
        )

    def owner_lost_at(self) -> Instant:
        """When the hub that is silent is given up at the latest, and what it held is driven again."""
        owner, spans = self.view.owner, self.settings
        if owner is None:
            return self.after(self.now, spans.sweep.stuck)
        return self.after(owner.beat_at, spans.node.lost_after + spans.sweep.nodes)

    def last_heard(self) -> str:
        owner = self.view.owner
        return f"was last heard of at {self.when(owner.beat_at)}" if owner else "is gone"


def _tried(broker: Broker) -> str:
    """Hubs look for work of such a broker, and ask its endpoint for it, with pauses of at most half a minute."""
    return ", or when its HTTP endpoint answers, which hubs try again and again" if broker.endpoint else ""


class Pending(Situation):
    """In nobody's hands."""

    def __init__(self, view: LaneView, settings: Settings, version: str) -> None:
        super().__init__(view, settings)
        self._version = version

    def reason(self) -> Explanation:
        broker = self.view.broker
        if broker is None:
            return Explanation(code="waiting_broker", sentence="Its broker was deleted: nobody can take it.")
        if broker.paused:
            sentence = f"Broker {broker.name} is paused: it goes out once it is resumed."
            return Explanation(code="paused", sentence=sentence)
        called = broker.connection_kind == "direct" and self.view.owner_alive
        if not broker.online and not called:
            return self._no_socket(broker)
        return self.behind() or self._agent_rests() or self._too_early() or self._to_be_claimed(broker)

    # -- nobody holds its broker ---------------------------------------------------------------------------------

    def _no_socket(self, broker: Broker) -> Explanation:
        if not broker.connection_epoch:
            sentence = (
                f"Broker {broker.name} has never connected: it goes out when the broker is there{_tried(broker)}."
            )
            return Explanation(code="waiting_broker", sentence=sentence)
        if broker.connected_hub_id:
            return self._silent_owner(broker.connected_hub_id)
        return self._between_sockets(broker) or self._away(broker)

    def _silent_owner(self, node_id: str) -> Explanation:
        at = self.owner_lost_at()
        sentence = (
            f"Hub {node_id}, which held broker {self.broker_name}, {self.last_heard()}; it is given up at "
            f"{self.when(at)} unless it or the broker is heard of before, and the broker dials another hub."
        )
        return Explanation(code="waiting_broker", sentence=sentence, next_attempt_at=at)

    def _between_sockets(self, broker: Broker) -> Explanation | None:
        """It is being replaced."""
        grace = self.settings.dispatch.reconnect_grace
        if broker.missing_for is None or broker.missing_for >= grace or broker.left_orderly:
            return None
        ends = Instant(self.now + int((grace - broker.missing_for) * 1_000_000))
        dials = "is most likely dialling the next hub"
        next_one = f"{dials}, or a hub asks its HTTP endpoint again" if broker.endpoint else dials
        sentence = (
            f"Broker {broker.name} is between two {'links' if broker.endpoint else 'sockets'}: it lost the last one "
            f"{span(broker.missing_for)} ago and {next_one}. Its grace ends at {self.when(ends)}{self._then_expires()}."
        )
        return Explanation(code="waiting_broker", sentence=sentence)

    def _away(self, broker: Broker) -> Explanation:
        since = f" since {self.when(broker.disconnected_at)}" if broker.disconnected_at else ""
        how = ", when it said goodbye" if broker.left_orderly and since else ""
        expires = self._then_expires()
        if expires:
            at = self.after(self.now, self.settings.sweep.nodes)
            until = f"nobody asked for it to be held: it expires at {self.when(at)} unless the broker is there"
            return Explanation(
                code="waiting_broker", sentence=f"Broker {broker.name} is not connected{since}{how}, and {until}."
            )
        then = f"it goes out when the broker is there{_tried(broker)}"
        sentence = f"Broker {broker.name} is not connected{since}{how}: {then}."
        return Explanation(code="waiting_broker", sentence=sentence)

    def _then_expires(self) -> str:
        intent = self.intent
        kept = intent.hold or intent.attempts > 0 or intent.lane is Lane.MESSAGE
        return "" if kept else "; if it is not there by then, it expires"

    # -- not yet -------------------------------------------------------------------------------------------------

    def _agent_rests(self) -> Explanation | None:
        agent = self.view.agent
        if self.intent.lane is not Lane.MESSAGE or agent is None or agent.phase is Phase.RUNNING:
            return None
        sentence = f"Agent {agent.slug} is {agent.phase}: messages are delivered while it runs."
        return Explanation(code="waiting_agent", sentence=sentence)

    def _too_early(self) -> Explanation | None:
        intent = self.intent
        if intent.next_attempt_at is None or intent.next_attempt_at <= self.now:
            return None
        sentence = (
            f"The {ordinal(intent.attempts)} attempt did not end it{self._why_again()}; "
            f"the {ordinal(intent.attempts + 1)} is made at {self.when(intent.next_attempt_at)}."
        )
        return Explanation(code="waiting_retry", sentence=sentence, next_attempt_at=intent.next_attempt_at)

    def _why_again(self) -> str:
        if self.intent.error:
            return f" ({self.intent.error.message})"
        last = self.view.history[-1] if self.view.history else None
        return f" ({last.reason.replace('_', ' ')})" if last else ""

    # -- the hub that holds the broker takes it next -------------------------------------------------------------

    def _to_be_claimed(self, broker: Broker) -> Explanation:
        hub = f"Hub {broker.connected_hub_id}, which holds broker {broker.name},"
        if full := self.window_full():
            return Explanation(code="waiting_owner", sentence=full)
        claimable = max(self._since(), broker.connected_at or Instant(0))
        poll = self.settings.bus.poll_healthy
        at = self.after(claimable, poll)
        if self.age(claimable) > OVERDUE * poll:
            at = self.after(self.now, poll)
            sentence = f"{hub} could have taken it since {self.when(claimable)} and has not{self._suspicion()}."
        else:
            sentence = f"{self._so_far()}{hub} was woken for it and claims it by {self.when(at)}."
        return Explanation(code="waiting_owner", sentence=sentence, next_attempt_at=at)

    def _since(self) -> Instant:
        intent, history = self.intent, self.view.history
        moved = history[-1].at if history else intent.created_at
        return max(moved, intent.next_attempt_at or Instant(0))

    def _so_far(self) -> str:
        """What went before this attempt."""
        intent, history = self.intent, self.view.history
        if not intent.attempts or not history:
            return ""
        last = history[-1]
        lost = {"link_lost": "its broker's socket was lost", "owner_lost": "its hub was lost"}
        why = lost.get(last.reason, last.reason.replace("_", " "))
        return f"It is driven again after the {ordinal(intent.attempts)} attempt ({why}). "

    def _suspicion(self) -> str:
        owner = self.view.owner
        if owner is None:
            return ""
        if owner.version != self._version:
            return (
                f": it runs version {owner.version}, this hub {self._version}; if it does not know the operation "
                f"{self.intent.op}, that waits until a hub which does holds the broker"
            )
        if owner.draining:
            return ": it is stopping, and its brokers go to other hubs"
        return ": look at its log and its readiness"


class InHand(Situation):
    """Claimed by a hub."""

    def reason(self) -> Explanation:
        intent = self.intent
        if not self._epoch_holds() or not self.view.owner_alive:
            return self._lost()
        since = f"Hub {intent.claimed_by} took it at {self.when(intent.claimed_at or self.now)}"
        if intent.accepted_at:
            sentence = (
                f"{since}; broker {self.broker_name} accepted it at {self.when(intent.accepted_at)} and works on it"
                f"{self._last_progress()}."
            )
            return Explanation(code="accepted", sentence=sentence)
        if intent.sent_at:
            sentence = (
                f"{since} and sent it to broker {self.broker_name} at {self.when(intent.sent_at)}; "
                f"the answer has not come yet{self._last_progress()}."
            )
            return Explanation(code="sent", sentence=sentence)
        return self.behind() or self._unsent(since)

    def _unsent(self, since: str) -> Explanation:
        if full := self.window_full():
            return Explanation(code="waiting_owner", sentence=f"{since}. {full}")
        if self.age(self.intent.claimed_at or self.now) < AT_ONCE:
            sentence = f"{since} and is about to send it to broker {self.broker_name}."
            return Explanation(code="waiting_owner", sentence=sentence)
        sentence = (
            f"{since} and has not sent it yet: it waits for a call of the same agent that came before and has no row, "
            "or for values that a plugin resolves."
        )
        return Explanation(code="waiting_lane", sentence=sentence)

    def _last_progress(self) -> str:
        at = self.intent.progress_at
        return f"; it last told of progress at {self.when(at)}" if at else ""

    def _epoch_holds(self) -> bool:
        broker = self.view.broker
        return broker is not None and self.intent.claimed_epoch == broker.connection_epoch

    def _lost(self) -> Explanation:
        intent, broker = self.intent, self.view.broker
        if self._epoch_holds():
            at = self.owner_lost_at()
            why = f"which {self.last_heard()}"
        else:
            at = self.after(self.now, self.settings.sweep.stuck)
            epoch = f"; its broker's row carries epoch {broker.connection_epoch} by now" if broker else ""
            why = f"under epoch {intent.claimed_epoch}{epoch}"
        sentence = (
            f"Hub {intent.claimed_by}, {why}, had taken it and no longer holds the broker: "
            f"it is driven again by {self.when(at)}."
        )
        return Explanation(code="waiting_owner", sentence=sentence, next_attempt_at=at)
