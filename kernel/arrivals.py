"""What follows when a broker's socket comes, speaks or goes."""

from __future__ import annotations

from kernel import wire
from kernel.drain import Drain
from kernel.lanes import Lanes
from kernel.link import Link
from kernel.node import NodeId
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.reports import Reports
from kernel.signals import Signal, SignalKind, Signals
from kernel.storage import Changed, Released, SessionClaimed
from kernel.waiters import Waiters


class Arrivals:
    """Listens to all links. Nothing here waits: it notes, wakes, and leaves the rest to tasks."""

    def __init__(
        self,
        *,
        lanes: Lanes,
        drain: Drain,
        reports: Reports,
        notices: Notices,
        observer: Observer,
        signals: Signals,
        waiters: Waiters,
    ) -> None:
        self._lanes = lanes
        self._drain = drain
        self._reports = reports
        self._notices = notices
        self._observer = observer
        self._signals = signals
        self._waiters = waiters

    def arrived(self, link: Link, claimed: SessionClaimed) -> None:
        self._moved(claimed.redriven)
        former = claimed.former
        if former and former.node_id != link.session.node_id:
            self._signals.signal(
                NodeId(former.node_id), Signal(kind=SignalKind.MOVED, broker_id=link.session.broker_id)
            )
        self._drain.start(link)

    def left(self, link: Link, released: Released) -> None:
        """Whatever another link of this broker may claim is looked at: ours may be the newer one."""
        self._moved(released.changed)
        self._drain.wake(link.session.broker_id)

    async def events(self, link: Link, event: wire.Event) -> None:
        await self._reports.event(link, event)

    def accepted(self, intent_id: str) -> None:
        work = self._lanes.find(intent_id)
        if work:
            work.accepted = True
            self._notices.progress(work)
        self._waiters.progress(intent_id)

    def _moved(self, changed: Changed) -> None:
        self._observer.tell(changed.transitions)
        ended = [intent for intent in changed.intents if intent.state.ended]
        for intent in ended:
            self._waiters.ended(intent)
        self._notices.ended(*ended)
