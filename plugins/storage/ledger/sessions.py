"""Who holds which broker: the newest session wins, and only its own release clears it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kernel import (
    Broker,
    BrokerId,
    Epoch,
    IntentId,
    NodeId,
    NotFound,
    Overtaken,
    Reaped,
    Released,
    Session,
    SessionClaim,
    SessionClaimed,
    SessionId,
    is_uuid,
)
from plugins.storage.ledger.query import NOW, Greatest, Query, Tx, among, first, param, within
from plugins.storage.ledger.rows import BROKER
from plugins.storage.ledger.sweeping import STAMP_SENT, Moves, count_crash, hand_back, in_hand
from plugins.storage.schema import Instant, hub_nodes, runtime_brokers

ORDERLY = 1000
"""The close code of a broker that stops; any other end is a crash if another process comes back."""

_b, _n = runtime_brokers.c, hub_nodes.c
_FIND = Query(sa.select(*BROKER.columns).where(_b.id == param("which"), _b.deleted_at.is_(None)), BROKER.read)
_FIND_LOCKED = Query(_FIND.statement.with_for_update(of=runtime_brokers, key_share=True), BROKER.read)  # type: ignore[attr-defined]
_CLAIM = Query[int](
    sa.update(runtime_brokers)
    .values(
        connected_hub_id=param("node"),
        connected_session_id=param("session"),
        connected_at=NOW,
        connection_epoch=Greatest(_b.connection_epoch, param("seen", sa.BigInteger())) + 1,
        connection_kind=param("kind"),
        renewed_at=NOW,
        disconnected_at=None,
        disconnect_code=None,
        status=param("to_status"),
        instance=param("process"),
        version=sa.func.coalesce(param("runs", sa.Text()), _b.version),
        announced=param("can"),
        window=param("places"),
        updated=NOW,
        lock_version=_b.lock_version + 1,
    )
    .where(_b.id == param("which"), _b.deleted_at.is_(None))
    .returning(_b.connection_epoch),
    first,
)


def claim_session(tx: Tx, claim: SessionClaim) -> SessionClaimed:
    """Over HTTP only what nobody holds: the row is locked, so that of two nodes one finds the other.

    Raises: NotFound when the broker is unknown or deleted; Overtaken.
    """
    broker = tx.one(_FIND_LOCKED, which=claim.broker_id.lower()) if is_uuid(claim.broker_id) else None
    if broker is None:
        raise NotFound(f"there is no broker {claim.broker_id}: register it and join again")
    former = _holder(broker)
    if former and (former.node_id, former.session_id) == (claim.node_id, claim.session_id):
        return SessionClaimed(session=former, broker=broker, former=None, redriven=Moves().changed())
    if former and claim.kind == "direct":
        raise Overtaken(f"broker {broker.name} is held by node {former.node_id}")
    session = Session(
        broker_id=broker.id, node_id=claim.node_id, session_id=claim.session_id, epoch=_raised(tx, broker, claim)
    )
    moves = Moves()
    if _crashed(broker, claim):
        count_crash(tx, broker.id, broker.connection_epoch, claim.node_id, moves)
    hand_back(tx, in_hand(tx, broker.id), "owner_lost", claim.node_id, moves)
    after = tx.one(_FIND, which=broker.id)
    assert after is not None
    return SessionClaimed(
        session=session, broker=after, former=former, former_instance=broker.instance, redriven=moves.changed()
    )


def _holder(broker: Broker) -> Session | None:
    if broker.connected_hub_id is None or broker.connected_session_id is None:
        return None
    return Session(
        broker_id=broker.id,
        node_id=broker.connected_hub_id,
        session_id=SessionId(broker.connected_session_id),
        epoch=Epoch(broker.connection_epoch),
    )


def _raised(tx: Tx, broker: Broker, claim: SessionClaim) -> Epoch:
    """The epoch grows beyond the row's and beyond the highest that the broker has seen."""
    epoch = tx.one(
        _CLAIM,
        which=broker.id,
        node=claim.node_id,
        session=claim.session_id,
        seen=claim.last_epoch,
        kind=claim.kind,
        to_status="online" if claim.kind == "socket" else "offline",
        process=claim.instance,
        runs=claim.version,
        can=claim.capabilities,
        places=claim.window,
    )
    assert epoch is not None
    return Epoch(epoch)


def _crashed(broker: Broker, claim: SessionClaim) -> bool:
    """Another process of the broker comes, and the former did not leave in order."""
    if broker.instance is None or claim.instance is None or broker.instance == claim.instance:
        return False
    return broker.connected_session_id is not None or not broker.left_orderly


# -- release, renew -----------------------------------------------------------------------------------------

_MINE = sa.and_(
    _b.id == param("which"),
    _b.connected_hub_id == param("node"),
    _b.connected_session_id == param("session"),
    _b.connection_epoch == param("epoch"),
)
_GONE: dict[str, Any] = {
    "connected_hub_id": None,
    "connected_session_id": None,
    "connection_kind": None,
    "status": "offline",
    "updated": NOW,
    "lock_version": _b.lock_version + 1,
}
_RELEASE = Query[Any](
    sa.update(runtime_brokers).values(disconnected_at=NOW, disconnect_code=param("code"), **_GONE).where(_MINE)
)
_still_mine = (
    among(_b.connected_session_id, "sessions"),
    among(_b.id, "brokers"),
    _b.connected_hub_id == param("node"),
)
# None waits for a row that somebody else holds: one hub that stands still would have the brokers of all others reaped.
_free = sa.select(_b.id).where(*_still_mine).order_by(_b.id).with_for_update(key_share=True, skip_locked=True)
_RENEW = Query[SessionId](
    sa.update(runtime_brokers)
    .values(renewed_at=NOW)
    .where(within(_b.id, _free), *_still_mine)
    .returning(_b.connected_session_id),
    first,
)
_NAMED = Query[SessionId](sa.select(_b.connected_session_id).where(*_still_mine), first)


def _names(session: Session) -> dict[str, Any]:
    return {
        "which": session.broker_id,
        "node": session.node_id,
        "session": session.session_id,
        "epoch": session.epoch,
    }


def release_session(tx: Tx, session: Session, code: int, sent: Sequence[IntentId]) -> Released:
    """Compare and clear; what the session had in hand is pending again."""
    if tx.run(_RELEASE, code=code, **_names(session)) == 0:
        return Released(cleared=False)
    if sent:
        for stamp in STAMP_SENT:
            tx.run(stamp, ids=list(sent), epoch=session.epoch)
    moves = Moves()
    hand_back(tx, in_hand(tx, session.broker_id), "link_lost", session.node_id, moves)
    return Released(cleared=True, changed=moves.changed())


class Renewal(msgspec.Struct, frozen=True, kw_only=True):
    lost: tuple[SessionId, ...] = ()
    """The rows no longer name them."""
    busy: tuple[Session, ...] = ()
    """Named, but somebody else is about to write the row: to be asked again."""


def renew(tx: Tx, sessions: Sequence[Session]) -> Renewal:
    lost: list[SessionId] = []
    busy: list[Session] = []
    for node in sorted({session.node_id for session in sessions}):
        mine = [session for session in sessions if session.node_id == node]
        values = {
            "sessions": [session.session_id for session in mine],
            "brokers": [session.broker_id for session in mine],
            "node": node,
        }
        renewed = set(tx.all(_RENEW, **values))
        left = [session for session in mine if session.session_id not in renewed]
        named = set(tx.all(_NAMED, **values)) if left else set()
        lost += [session.session_id for session in left if session.session_id not in named]
        busy += [session for session in left if session.session_id in named]
    return Renewal(lost=tuple(lost), busy=tuple(busy))


# -- reap ---------------------------------------------------------------------------------------------------

_LOSE = Query[NodeId](
    sa.update(hub_nodes)
    .values(lost_at=NOW)
    .where(_n.lost_at.is_(None), _n.beat_at < param("silent_since"))
    .returning(_n.id),
    first,
)
_MAY_JUDGE = Query[int](
    sa.select(sa.literal_column("1")).where(
        _n.id == param("judge"), _n.lost_at.is_(None), _n.beat_at >= param("silent_since")
    ),
    first,
)
_lives = (
    sa.select(sa.literal_column("1"))
    .where(_n.id == _b.connected_hub_id, _n.lost_at.is_(None))
    .correlate(runtime_brokers)
    .exists()
)
MOST_REAPED = 100
"""Brokers that one round clears: it is done in time however much a lost node had in hand."""
_stale = (_b.connected_hub_id.is_not(None), sa.or_(sa.not_(_lives), _b.renewed_at < param("stale_since")))
_STALE = Query[BrokerId](
    sa.select(_b.id).where(*_stale).limit(MOST_REAPED).with_for_update(of=runtime_brokers, skip_locked=True), first
)
# Their rows are locked: neither their owners nor their epochs change any more.
_CLEAR = Query[BrokerId](
    sa.update(runtime_brokers)
    .values(disconnected_at=_b.renewed_at, disconnect_code=None, **_GONE)
    .where(among(_b.id, "brokers"), *_stale)
    .returning(_b.id),
    first,
)

CALM_AFTER = 120.0
"""Seconds since the newest session of a broker came, after which nobody takes its socket by turns any more: who lost it
to another process waits 30."""
_calm = (_b.conflict, _b.connected_at < param("calm_since", Instant()))
_unlocked = sa.select(_b.id).where(*_calm).order_by(_b.id).with_for_update(skip_locked=True, key_share=True)
_APPEASE = Query[Any](
    sa.update(runtime_brokers)
    .values(conflict=False, updated=NOW, lock_version=_b.lock_version + 1)
    .where(within(_b.id, _unlocked), *_calm)
)


def reap(tx: Tx, judge: NodeId, lost_after: float, stale_after: float) -> Reaped:
    """Silent nodes are lost; affinity that names one, or was not renewed, is cleared. So is a conflict that is over.
    Who is silent itself judges nobody."""
    if not tx.elect("reap"):
        return Reaped()
    silent_since = tx.now - int(lost_after * 1_000_000)
    if tx.one(_MAY_JUDGE, judge=judge, silent_since=silent_since) is None:
        return Reaped()
    lost = tx.all(_LOSE, silent_since=silent_since)
    stale_since = tx.now - int(stale_after * 1_000_000)
    stale = tx.all(_STALE, stale_since=stale_since)
    cleared = tx.all(_CLEAR, brokers=stale, stale_since=stale_since) if stale else []
    tx.run(_APPEASE, calm_since=tx.now - int(CALM_AFTER * 1_000_000))
    moves = Moves()
    if cleared:
        hand_back(tx, in_hand(tx, *cleared), "owner_lost", None, moves)
    return Reaped(lost_nodes=tuple(lost), cleared=tuple(cleared), changed=moves.changed())
