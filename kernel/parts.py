"""Builds the parts of a hub on its ground, each handed what it needs."""

from __future__ import annotations

from collections.abc import Callable

import anyio.abc
import msgspec

from kernel import wire
from kernel.answers import Answers
from kernel.arrivals import Arrivals
from kernel.attempt import Attempts
from kernel.clock import Clock
from kernel.config import Settings
from kernel.conflict import Conflicts
from kernel.directs import Directs
from kernel.dispatch import Delivery, Dispatcher
from kernel.drain import Drain
from kernel.ends import Ends
from kernel.handover import Handover
from kernel.hooks import Hooks
from kernel.keyring import Keyring
from kernel.link import Link
from kernel.links import Links
from kernel.node import NodeId
from kernel.notices import Notices
from kernel.observe import Observer
from kernel.plan import Planner
from kernel.pulse import Pulse
from kernel.readiness import Readiness
from kernel.recovery import Recovery
from kernel.reports import Reports
from kernel.routing import Routing
from kernel.signals import Signals
from kernel.storage import Storage
from kernel.sweeps import Judgement, Sweeps
from kernel.tokens import Minter
from kernel.waiters import Waiters
from kernel.wakeups import Wakeups


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What is there before the parts and goes after them."""

    settings: Settings
    hooks: Hooks
    clock: Clock
    node_id: NodeId
    url: str
    tasks: anyio.abc.TaskGroup
    storage: Storage
    breaks: Callable[[], int]
    """How many connections to the database broke."""
    keyring: Keyring
    signals: Signals
    pulse: Pulse
    observer: Observer

    def address(self) -> str:
        return self.url

    def lazy(self, link: Link) -> bool:
        """Claims and ends need not wait for the disk where the broker dedupes (design/dispatch.md section 7)."""
        return self.settings.dispatch.durability == "intents" and link.can(wire.DEDUPE)


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What a call meets on its way to its end."""

    links: Links
    conflicts: Conflicts
    directs: Directs
    waiters: Waiters
    notices: Notices
    ends: Ends
    delivery: Delivery
    dispatcher: Dispatcher


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server asks, and what runs beside it."""

    story: Story
    sweeps: Sweeps
    recovery: Recovery
    drain: Drain
    reports: Reports
    wakeups: Wakeups
    readiness: Readiness
    handover: Handover


def build(ground: Ground) -> Parts:
    """Nothing runs yet."""
    story = _story(ground)
    recovery = _recovery(ground, story)
    drain = _drain(ground, story, recovery)
    reports = _reports(ground, story)
    story.links.listener = _arrivals(ground, story, drain, reports)
    readiness = Readiness(storage=ground.storage, pulse=ground.pulse, signals=ground.signals)
    return Parts(
        story=story,
        sweeps=_sweeps(ground, story),
        recovery=recovery,
        drain=drain,
        reports=reports,
        wakeups=_wakeups(ground, story, drain),
        readiness=readiness,
        handover=_handover(ground, story, readiness),
    )


# -- the story ---------------------------------------------------------------------------------------------------


def _story(ground: Ground) -> Story:
    conflicts = Conflicts(ground.storage, ground.tasks)
    links = _links(ground, conflicts)
    directs = _directs(ground, links)
    waiters = Waiters(ground.storage, ground.clock, ground.settings.bus.rekick)
    notices = Notices(signals=ground.signals, observer=ground.observer, node_id=ground.node_id, clock=ground.clock)
    ends = _ends(ground, waiters, notices)
    delivery = Delivery(attempts=_attempts(ground), ends=ends, notices=notices, clock=ground.clock, tasks=ground.tasks)
    dispatcher = Dispatcher(
        storage=ground.storage,
        signals=ground.signals,
        links=links,
        directs=directs,
        waiters=waiters,
        routing=_routing(ground, links, directs),
        planner=_planner(ground),
        delivery=delivery,
        answers=_answers(ground, waiters, notices, ends, delivery),
        notices=notices,
        observer=ground.observer,
        pulse=ground.pulse,
        clock=ground.clock,
    )
    return Story(
        links=links,
        conflicts=conflicts,
        directs=directs,
        waiters=waiters,
        notices=notices,
        ends=ends,
        delivery=delivery,
        dispatcher=dispatcher,
    )


def _links(ground: Ground, conflicts: Conflicts) -> Links:
    return Links(
        storage=ground.storage,
        node_id=ground.node_id,
        clock=ground.clock,
        settings=ground.settings.channel,
        window=ground.settings.dispatch.window,
        tells_conflict=conflicts.tell,
    )


def _directs(ground: Ground, links: Links) -> Directs:
    return Directs(
        storage=ground.storage,
        links=links,
        keyring=ground.keyring,
        clock=ground.clock,
        settings=ground.settings.channel,
        every=ground.settings.sweep.nodes,
        tasks=ground.tasks,
    )


def _ends(ground: Ground, waiters: Waiters, notices: Notices) -> Ends:
    return Ends(
        storage=ground.storage,
        signals=ground.signals,
        notices=notices,
        waiters=waiters,
        observer=ground.observer,
        clock=ground.clock,
        node_id=ground.node_id,
        tasks=ground.tasks,
        lazy=ground.lazy,
    )


def _attempts(ground: Ground) -> Attempts:
    return Attempts(
        hooks=ground.hooks,
        agents=ground.storage,
        keyring=ground.keyring,
        clock=ground.clock,
        observer=ground.observer,
        mint=Minter(ground.keyring, ground.clock).agent_token,
        address=ground.address,
        late_grace=ground.settings.sweep.stuck,
        message_attempts=ground.settings.dispatch.message_attempts,
    )


def _routing(ground: Ground, links: Links, directs: Directs) -> Routing:
    return Routing(
        links=links,
        observer=ground.observer,
        clock=ground.clock,
        node_id=ground.node_id,
        rank_route=ground.hooks.rank_route,
        reconnect_grace=ground.settings.dispatch.reconnect_grace,
        endpoint_answers=directs.answers,
    )


def _planner(ground: Ground) -> Planner:
    return Planner(node_id=ground.node_id, keyring=ground.keyring, clock=ground.clock, spans=ground.settings.dispatch)


def _answers(ground: Ground, waiters: Waiters, notices: Notices, ends: Ends, delivery: Delivery) -> Answers:
    return Answers(
        storage=ground.storage,
        waiters=waiters,
        lanes=delivery.lanes,
        ends=ends,
        observer=ground.observer,
        clock=ground.clock,
        node_id=ground.node_id,
        settings=ground.settings.dispatch,
        kick=notices.kick,
        stop=delivery.stop,
        is_calm=lambda: ground.pulse.calm,
    )


# -- what keeps it going -----------------------------------------------------------------------------------------


def _recovery(ground: Ground, story: Story) -> Recovery:
    return Recovery(
        storage=ground.storage,
        links=story.links,
        lanes=story.delivery.lanes,
        ends=story.ends,
        pulse=ground.pulse,
        observer=ground.observer,
        clock=ground.clock,
        every=ground.settings.node.beat,
        strangers_every=ground.settings.sweep.stuck,
        breaks=ground.breaks,
    )


def _drain(ground: Ground, story: Story, recovery: Recovery) -> Drain:
    return Drain(
        storage=ground.storage,
        links=story.links,
        lanes=story.delivery.lanes,
        recovery=recovery,
        observer=ground.observer,
        clock=ground.clock,
        tasks=ground.tasks,
        lazy=ground.lazy,
    )


def _reports(ground: Ground, story: Story) -> Reports:
    return Reports(
        storage=ground.storage,
        lanes=story.delivery.lanes,
        notices=story.notices,
        waiters=story.waiters,
        clock=ground.clock,
        tasks=ground.tasks,
    )


def _arrivals(ground: Ground, story: Story, drain: Drain, reports: Reports) -> Arrivals:
    return Arrivals(
        lanes=story.delivery.lanes,
        drain=drain,
        reports=reports,
        notices=story.notices,
        observer=ground.observer,
        signals=ground.signals,
        waiters=story.waiters,
    )


def _sweeps(ground: Ground, story: Story) -> Sweeps:
    return Sweeps(
        storage=ground.storage,
        observer=ground.observer,
        waiters=story.waiters,
        notices=story.notices,
        pulse=ground.pulse,
        clock=ground.clock,
        every=ground.settings.sweep,
        renew=story.links.renew_once,
        spans=Judgement(
            lost_after=ground.settings.node.lost_after,
            stale_after=ground.settings.channel.stale_after,
            reconnect_grace=ground.settings.dispatch.reconnect_grace,
            retention=ground.settings.dispatch.retention,
        ),
    )


def _wakeups(ground: Ground, story: Story, drain: Drain) -> Wakeups:
    return Wakeups(
        signals=ground.signals,
        storage=ground.storage,
        node_id=ground.node_id,
        clock=ground.clock,
        settings=ground.settings.bus,
        drain=drain,
        delivery=story.delivery,
        waiters=story.waiters,
        links=story.links,
    )


def _handover(ground: Ground, story: Story, readiness: Readiness) -> Handover:
    return Handover(
        storage=ground.storage,
        links=story.links,
        dispatcher=story.dispatcher,
        lanes=story.delivery.lanes,
        ends=story.ends,
        waiters=story.waiters,
        readiness=readiness,
        pulse=ground.pulse,
        clock=ground.clock,
    )
