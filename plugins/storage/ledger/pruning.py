"""Forgets what is past its time, a bounded number of rows at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from plugins.storage.ledger.brokers import NONCE_LIFE
from plugins.storage.ledger.homes import HOMES, Home
from plugins.storage.ledger.keys import LIFE
from plugins.storage.ledger.query import Oldest, Query, Tx, among, first, param
from plugins.storage.schema import agents, broker_join_tokens, hub_nodes, idempotency_keys, nonces, transitions

TOKEN_LIFE = 24 * 3600 * 1_000_000
"""Microseconds past its hour in which a join token is still told to be expired, not unknown."""


def _old(home: Home) -> Query[str]:
    """Ended before the cutoff; by the order in which they were made, so that nothing newer is looked at."""
    c = home.c
    return Query(
        sa.select(c.id)
        .where(home.created < param("cutoff"), home.is_intent, c.ended_at < param("cutoff"))
        .order_by(home.created, c.id)
        .limit(param("take")),
        first,
    )


_OLD = {home.lane: _old(home) for home in HOMES}
_DELETE = {home.lane: Query[Any](sa.delete(home.table).where(among(home.c.id, "ids"))) for home in HOMES}
_DELETE_STEPS = Query[Any](sa.delete(transitions).where(among(transitions.c.intent_id, "ids")))


def _delete(table: sa.Table, stamp: sa.Column[Any]) -> Query[Any]:
    """Looked at once more when it goes: another hub may have renewed it meanwhile."""
    old = stamp < param("cutoff")
    return Query(sa.delete(table).where(Oldest(table, sa.and_(stamp.is_not(None), old)), old))


_NONCES = _delete(nonces, nonces.c.seen_at)
_KEYS = _delete(idempotency_keys, idempotency_keys.c.created)
_TOKENS = _delete(broker_join_tokens, broker_join_tokens.c.expires_at)
_AGENTS = _delete(agents, agents.c.deleted_at)
_NODES = _delete(hub_nodes, hub_nodes.c.lost_at)


def prune(tx: Tx, retention: float, limit: int) -> int:
    """How many rows went, at most `limit`; an intent's history goes with it and is not counted."""
    if not tx.elect("prune"):
        return 0
    gone = 0
    for removed in _rounds(tx, tx.now - int(retention * 1_000_000), limit):
        gone += removed
        if gone >= limit:
            break
    return gone


def _rounds(tx: Tx, cutoff: int, limit: int) -> Iterator[int]:
    left = limit
    for home in HOMES:
        removed = _prune_intents(tx, home, cutoff, left)
        left -= removed
        yield removed
    for query, since in (
        (_NONCES, tx.now - NONCE_LIFE),
        (_KEYS, tx.now - LIFE),
        (_TOKENS, tx.now - TOKEN_LIFE),
        (_AGENTS, cutoff),
        (_NODES, cutoff),
    ):
        removed = tx.run(query, cutoff=since, take=left)
        left -= removed
        yield removed


def _prune_intents(tx: Tx, home: Home, cutoff: int, limit: int) -> int:
    ids = tx.all(_OLD[home.lane], cutoff=cutoff, take=limit)
    if ids:
        tx.run(_DELETE_STEPS, ids=ids)
        tx.run(_DELETE[home.lane], ids=ids)
    return len(ids)
