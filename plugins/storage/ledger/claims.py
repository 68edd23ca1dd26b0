"""Takes the heads of a broker's lanes into the hands of the node that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from kernel import Broker, BrokerId, ClaimRequest, Claims, Intent, NodeId, Phase, Progress, State, is_uuid
from plugins.storage.ledger.history import step
from plugins.storage.ledger.homes import HOMES, IN_PROGRESS, MESSAGES, Home, home_of
from plugins.storage.ledger.query import NOW, ONE, Hidden, Query, Tx, among, any_of, first, param, within
from plugins.storage.ledger.rows import BROKER
from plugins.storage.schema import Flag, agents, messages, runtime_brokers

_b = runtime_brokers.c


def carried(*, paused: bool) -> Any:
    """The broker's row carries this node, session and epoch."""
    terms = [
        _b.id == param("broker"),
        _b.connected_hub_id == param("node"),
        _b.connected_session_id == param("session"),
        _b.connection_epoch == param("epoch"),
    ]
    if not paused:
        terms.append(sa.not_(_b.paused))
    return sa.select(sa.literal_column("1")).where(*terms)


def _agents_waiting(home: Home) -> Any:
    """The agents of one broker for which something is unfinished: from one to the next by index, so that a lane's
    length costs nothing."""
    mine = [home.c.broker_id == param("broker"), home.unfinished()]
    least = sa.select(home.agent).where(*mine).order_by(home.agent).limit(ONE).scalar_subquery()
    waiting = sa.select(least.label("agent")).cte(f"waiting_{home.lane}", recursive=True)
    following = (
        sa.select(home.agent)
        .where(*mine, home.agent > waiting.c.agent)
        .order_by(home.agent)
        .limit(ONE)
        .correlate(waiting)
        .scalar_subquery()
    )
    return waiting.union_all(sa.select(following).where(waiting.c.agent.is_not(None)))


def _agents_hinted(home: Home) -> Any:
    """The agents of one broker of which a signal told, by the ids that it named."""
    unfinished = Hidden(home.c.ended_at).is_(None)
    mine = Hidden(home.c.broker_id) == param("broker")
    told = sa.select(home.agent.label("agent")).where(among(home.c.id, "hints"), mine, unfinished)
    return told.cte(f"waiting_{home.lane}")


def _heads(home: Home, *, hinted: bool) -> Any:
    """The ids of what is first in its lane: each agent's is looked up by index."""
    waiting = _agents_hinted(home) if hinted else _agents_waiting(home)
    lane = home.table.alias("lane")
    agent = home.agent.name
    head = (
        sa.select(lane.c.id)
        .where(lane.c.broker_id == param("broker"), lane.c[agent] == waiting.c.agent, home.unfinished(lane))
        .order_by(lane.c.seq)
        .limit(ONE)
        .correlate(waiting)
        .scalar_subquery()
    )
    return sa.select(head).select_from(waiting)


def _may_be_taken(home: Home) -> list[Any]:
    """Nothing of the lane in hand, due, in time, known to the node."""
    other = home.table.alias("other")
    in_hand = (
        sa.select(ONE)
        .where(
            other.c.broker_id == param("broker"),
            other.c[home.agent.name] == home.agent,
            other.c[home.state.name] == IN_PROGRESS,
        )
        .correlate(home.table)
    )
    terms = [
        home.state == State.PENDING,
        sa.or_(home.c.next_attempt_at.is_(None), home.c.next_attempt_at <= NOW),
        home.c.deadline_at > NOW,
        among(home.op, "ops", sa.Text),
        any_of(in_hand).is_(None),
    ]
    if home is MESSAGES:
        live = sa.case((agents.c.deleted_at.is_(None), agents.c.phase))
        phase = sa.select(live).where(agents.c.id == messages.c.recipient_agent_id)
        terms.append(phase.correlate(messages).scalar_subquery() == Phase.RUNNING)
    return terms


def _chosen(home: Home, take: Any, *, hinted: bool, free: bool) -> Any:
    """The ids of the heads that may be taken, the oldest first. `free`: what somebody else is writing at this moment is
    left for later.

    Nothing is joined that a planner could begin with at its wrong end: each agent's head is looked up, then its row.
    """
    found = sa.select(home.c.id).where(within(home.c.id, _heads(home, hinted=hinted)), *_may_be_taken(home))
    found = found.order_by(home.c.seq + 0).limit(take)  # else the index of all intents by `seq` would be walked
    return found.with_for_update(of=home.table, key_share=True, skip_locked=True) if free else found


def claiming(home: Home, take: Any, carries: Any, *, hinted: bool, free: bool = False) -> Any:
    """One statement takes them, and only while the broker's row carries the session. `take` None: there is room for
    the heads of all agents of which a signal told."""
    if take is None:
        heads = [within(home.c.id, _heads(home, hinted=hinted)), *_may_be_taken(home)]
    else:
        heads = [within(home.c.id, _chosen(home, take, hinted=hinted, free=free)), home.state == State.PENDING]
    return home.change(
        state=IN_PROGRESS,
        attempts=home.c.attempts + 1,
        claimed_by=param("node"),
        claimed_epoch=param("epoch"),
        claimed_session=param("session"),
        claimed_at=NOW,
        sent_at=sa.null(),
        accepted_at=sa.null(),
        progress_at=sa.null(),
        next_attempt_at=sa.null(),
    ).where(*heads, carries)


# Shared: whoever claims the session meanwhile waits for this claim, and then finds what it took.
_CARRIED = Query[int](carried(paused=True).with_for_update(read=True), first)
_CLAIM = {
    (home.lane, hinted): Query[Intent](
        claiming(home, param("take"), carried(paused=False).exists(), hinted=hinted, free=True).returning(
            *home.shape.columns
        ),
        home.shape.read,
    )
    for home in HOMES
    for hinted in (False, True)
}


def arguments(request: ClaimRequest) -> dict[str, Any]:
    """What a claim names, but for how many it takes."""
    session = request.session
    return {
        "broker": session.broker_id,
        "node": session.node_id,
        "session": session.session_id,
        "epoch": session.epoch,
        "ops": sorted(request.ops),
        "hints": [hint for hint in request.ids or () if is_uuid(hint)],
    }


def claim(tx: Tx, request: ClaimRequest) -> Claims:
    """Control before messages; in the order in which they were recorded."""
    session = request.session
    values = arguments(request)
    if tx.one(_CARRIED, **values) is None:
        return Claims(stale=True, now=tx.now)
    taken: list[Intent] = []
    for home in HOMES:
        room = request.limit - len(taken)
        if room > 0:
            found = tx.all(_CLAIM[home.lane, request.ids is not None], **values, take=room)
            taken += sorted(found, key=lambda intent: intent.seq)
    steps = [
        step(tx, intent, State.PENDING, "claimed", session.node_id, epoch=session.epoch, attempt=intent.attempts)
        for intent in taken
    ]
    return Claims(intents=tuple(taken), transitions=tuple(steps), now=tx.now)


# -- the poll -----------------------------------------------------------------------------------------------


def brokers_waiting(home: Home) -> Any:
    """The brokers for which something is unfinished, from one to the next by index."""
    least = sa.select(home.c.broker_id).where(home.unfinished()).order_by(home.c.broker_id).limit(ONE)
    waiting = sa.select(least.scalar_subquery().label("broker")).cte(f"brokers_{home.lane}", recursive=True)
    following = (
        sa.select(home.c.broker_id)
        .where(home.unfinished(), home.c.broker_id > waiting.c.broker)
        .order_by(home.c.broker_id)
        .limit(ONE)
        .correlate(waiting)
        .scalar_subquery()
    )
    return waiting.union_all(sa.select(following).where(waiting.c.broker.is_not(None)))


def _poll(home: Home) -> Query[BrokerId]:
    waiting = brokers_waiting(home)
    due = (
        sa.select(sa.literal_column("1"))
        .where(
            home.c.broker_id == _b.id,
            home.unfinished(),
            home.state == State.PENDING,
            home.c.deadline_at > NOW,
            sa.or_(home.c.next_attempt_at.is_(None), home.c.next_attempt_at <= NOW),
        )
        .correlate(runtime_brokers)
        .exists()
    )
    mine = sa.and_(_b.id == waiting.c.broker, _b.connected_hub_id == param("node"), sa.not_(_b.paused))
    return Query(sa.select(_b.id).select_from(waiting).join(runtime_brokers, mine).where(due), first)


_POLL = [_poll(home) for home in HOMES]


def poll(tx: Tx, node_id: NodeId) -> list[BrokerId]:
    found = [broker_id for query in _POLL for broker_id in tx.all(query, node=node_id)]
    return list(dict.fromkeys(found))


# -- what nobody holds and an endpoint might take ------------------------------------------------------------


def _endpoints(home: Home) -> Query[Broker]:
    waiting = brokers_waiting(home)
    found: Any = sa.select(sa.literal_column("1")).select_from(home.table)
    if home is MESSAGES:
        runs = sa.and_(agents.c.id == messages.c.recipient_agent_id, agents.c.phase == Phase.RUNNING)
        found = found.join(agents, runs)
    due = (
        found.where(
            home.c.broker_id == _b.id,
            home.unfinished(),
            home.state == State.PENDING,
            home.c.deadline_at > NOW,
            sa.or_(home.c.next_attempt_at.is_(None), home.c.next_attempt_at <= NOW),
        )
        .correlate(runtime_brokers)
        .exists()
    )
    reachable = sa.and_(
        _b.id == waiting.c.broker,
        _b.endpoint.is_not(None),
        _b.connected_hub_id.is_(None),
        _b.deleted_at.is_(None),
        sa.not_(_b.paused),
    )
    joined = sa.select(*BROKER.columns).select_from(waiting).join(runtime_brokers, reachable)
    return Query(joined.where(due).limit(param("take")), BROKER.read)


_ENDPOINTS = [_endpoints(home) for home in HOMES]


def endpoints_waiting(tx: Tx, limit: int) -> list[Broker]:
    found = {broker.id: broker for query in _ENDPOINTS for broker in tx.all(query, take=limit)}
    return list(found.values())[:limit]


# -- progress -----------------------------------------------------------------------------------------------


def _note(home: Home) -> Query[Any]:
    c = home.c
    sent = sa.case((sa.and_(param("sent", Flag()), c.sent_at.is_(None)), NOW), else_=c.sent_at)
    accepted = sa.case((sa.and_(param("accepted", Flag()), c.accepted_at.is_(None)), NOW), else_=c.accepted_at)
    return Query(
        sa.update(home.table)
        .values(sent_at=sent, accepted_at=accepted, progress_at=NOW)
        .where(
            c.id == param("which"),
            home.state == IN_PROGRESS,
            c.claimed_epoch == param("epoch"),
            c.attempts == param("attempt"),
        )
    )


_NOTE = {home.lane: _note(home) for home in HOMES}


def progress(tx: Tx, steps: Sequence[Progress]) -> None:
    """Fenced by epoch and attempt: what was taken away since is left alone."""
    for one in steps:
        if is_uuid(one.intent_id):
            tx.run(
                _NOTE[home_of(one.op).lane],
                which=one.intent_id,
                epoch=one.epoch,
                attempt=one.attempt,
                sent=one.sent,
                accepted=one.accepted,
            )
