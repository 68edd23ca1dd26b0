"""Which hubs live. With one hub on a file, whoever joins knows that all others are gone."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kernel import Changed, Node, NodeId, is_uuid
from plugins.storage.ledger.query import NOW, Query, Tx, first, param
from plugins.storage.ledger.rows import NODE
from plugins.storage.ledger.sweeping import Moves, hand_back, in_hand
from plugins.storage.schema import hub_nodes, runtime_brokers

_c, _b = hub_nodes.c, runtime_brokers.c
_row = postgresql.insert(hub_nodes).values(
    id=param("id"), started_at=NOW, beat_at=NOW, version=param("version"), draining=param("draining")
)
_JOIN = Query[Any](
    _row.on_conflict_do_update(
        index_elements=[_c.id],
        set_={"beat_at": NOW, "version": _row.excluded.version, "draining": _row.excluded.draining,
              "lost_at": None},
    )
)  # fmt: skip
_OTHERS_LOST = Query[Any](sa.update(hub_nodes).values(lost_at=NOW).where(_c.id != param("me"), _c.lost_at.is_(None)))
_ME = (_c.id == param("me"), _c.lost_at.is_(None))
_BEAT = Query(
    sa.update(hub_nodes)
    .values(beat_at=NOW, draining=sa.or_(_c.draining, param("drains", _c.draining.type)))
    .where(*_ME)
    .returning(*NODE.columns),
    NODE.read,
)
_DRAIN = Query(sa.update(hub_nodes).values(draining=sa.true()).where(*_ME).returning(*NODE.columns), NODE.read)
_REMOVE = Query[Any](sa.delete(hub_nodes).where(_c.id == param("me")))
_LIST = Query(sa.select(*NODE.columns).order_by(_c.started_at, _c.id), NODE.read)
_CLEAR_OTHERS = Query[str](
    sa.update(runtime_brokers)
    .values(
        connected_hub_id=None,
        connected_session_id=None,
        connection_kind=None,
        status="offline",
        disconnected_at=NOW,
        disconnect_code=None,
        updated=NOW,
        lock_version=_b.lock_version + 1,
    )
    .where(_b.connected_hub_id.is_not(None), _b.connected_hub_id != param("me"))
    .returning(_b.id),
    first,
)


def join_node(tx: Tx, node: Node) -> Changed:
    """A hub that is alone knows that every other node is lost: what it had in hand is pending again."""
    tx.run(_JOIN, id=node.id, version=node.version, draining=node.draining)
    moves = Moves()
    if not tx.alone:
        return moves.changed()
    tx.run(_OTHERS_LOST, me=node.id)
    for broker_id in tx.all(_CLEAR_OTHERS, me=node.id):
        hand_back(tx, in_hand(tx, broker_id), "owner_lost", node.id, moves)
    return moves.changed()


def beat(tx: Tx, node_id: NodeId, draining: bool) -> Node | None:
    return tx.one(_BEAT, me=node_id, drains=draining)


def drain_node(tx: Tx, node_id: NodeId) -> Node | None:
    return tx.one(_DRAIN, me=node_id) if is_uuid(node_id) else None


def remove_node(tx: Tx, node_id: NodeId) -> None:
    tx.run(_REMOVE, me=node_id)


def list_nodes(tx: Tx) -> list[Node]:
    return tx.all(_LIST)
