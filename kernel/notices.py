"""What a node tells the others of brokers and dispatches that are theirs too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kernel.clock import Clock
from kernel.intent import Intent
from kernel.lanes import Work
from kernel.node import NodeId
from kernel.observe import Observer
from kernel.plan import Planned
from kernel.signals import Signal, SignalKind, Signals

MOST_HINTS = 100
"""Ids in one signal: of more than a broker takes at once it is enough to know that they are there."""
TELL_EVERY = 10.0
"""Seconds between two signals that the same dispatch moves on."""


class Notices:
    """Each is a signal, and may be lost: what it tells of stands in a row as well."""

    def __init__(self, *, signals: Signals, observer: Observer, node_id: NodeId, clock: Clock) -> None:
        self._signals = signals
        self._observer = observer
        self._node_id = node_id
        self._clock = clock

    # -- work --------------------------------------------------------------------------------------------------------

    def wake_owners(self, planned: Sequence[Planned]) -> None:
        """One signal for each broker, however many of its intents were recorded."""
        started = self._clock.monotonic()
        woken: defaultdict[tuple[NodeId | None, str], list[str]] = defaultdict(list)
        for one in planned:
            woken[one.owner, one.intent.broker_id].append(one.intent.id)
        for (owner, broker_id), ids in woken.items():
            hints = tuple(ids) if len(ids) <= MOST_HINTS else ()
            self._signals.signal(owner, Signal(kind=SignalKind.WORK, broker_id=broker_id, ids=hints))
        self._observer.stage("signal", self._clock.monotonic() - started)

    def wake(self, broker_id: str) -> None:
        """Something of this broker may be claimable now, on whichever node holds it."""
        self._signals.signal(None, Signal(kind=SignalKind.WORK, broker_id=broker_id))

    def kick(self, intent: Intent) -> None:
        """Nobody took it yet: signal again, to all, since its owner may have changed."""
        self._signals.signal(None, Signal(kind=SignalKind.WORK, broker_id=intent.broker_id, ids=(intent.id,)))

    # -- a broker ----------------------------------------------------------------------------------------------------

    def tell_holder(self, broker_id: str, kind: SignalKind, *session_ids: str) -> None:
        """The broker is not what it was: whichever node holds it heeds that."""
        self._signals.signal(None, Signal(kind=kind, broker_id=broker_id, ids=session_ids))

    # -- one dispatch ------------------------------------------------------------------------------------------------

    def progress(self, work: Work) -> None:
        """Let the node that accepted it know that it moves on; others read it in the row."""
        now = self._clock.monotonic()
        if work.intent.node_id != self._node_id and now - work.told_at >= TELL_EVERY:
            work.told_at = now
            self._signals.signal(NodeId(work.intent.node_id), Signal(kind=SignalKind.PROGRESS, ids=(work.intent.id,)))

    def ended(self, *intents: Intent) -> None:
        """Those who wait for them may do so on the nodes that accepted them: one signal for each such node."""
        theirs: defaultdict[str, list[str]] = defaultdict(list)
        for intent in intents:
            if intent.node_id != self._node_id:
                theirs[intent.node_id].append(intent.id)
        for node_id, ids in theirs.items():
            self._signals.signal(NodeId(node_id), Signal(kind=SignalKind.ENDED, ids=tuple(ids)))

    def stop(self, intent: Intent) -> None:
        """The node that has it in hand, if one has, is to stop it."""
        if intent.claimed_by:
            self._signals.signal(NodeId(intent.claimed_by), Signal(kind=SignalKind.CANCEL, ids=(intent.id,)))
