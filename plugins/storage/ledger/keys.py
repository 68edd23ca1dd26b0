"""Idempotency keys: what a caller's key was used for, kept 24 hours."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kernel import IdempotencyConflict, IdempotencyKey, IntentId, Repeated
from plugins.storage.ledger.query import Query, Tx, param
from plugins.storage.schema import idempotency_keys

LIFE = 24 * 3600 * 1_000_000
"""Microseconds."""

_c = idempotency_keys.c
_THIS = sa.and_(_c.principal == param("whose"), _c.key == param("named"))
_FIND = Query[tuple[Any, ...]](
    sa.select(_c.request_hash, _c.intent_id, _c.status, _c.answer).where(_THIS, _c.created > param("good_since"))
)
# Only what is past its time: another hub may have kept the key a moment ago.
_FORGET = Query[Any](sa.delete(idempotency_keys).where(_THIS, _c.created <= param("good_since")))
_KEEP = Query[Any](sa.insert(idempotency_keys).values({column.name: param(column.name) for column in _c}))


def in_turn(tx: Tx, key: IdempotencyKey) -> None:
    """Calls with one key pass one after the other: the later one finds what the earlier one made."""
    tx.queue(f"key {key.principal} {key.key}")


def find_key(tx: Tx, key: IdempotencyKey) -> Repeated | None:
    """Raises: IdempotencyConflict when it was used for another request."""
    found = tx.one(_FIND, whose=key.principal, named=key.key, good_since=tx.now - LIFE)
    if found is None:
        return None
    request_hash, intent_id, status, answer = found
    if request_hash != key.request_hash:
        raise IdempotencyConflict()
    return Repeated(intent_id=IntentId(intent_id) if intent_id else None, status=status, answer=answer)


def keep_key(
    tx: Tx, key: IdempotencyKey, *, intent_id: str | None = None, status: int | None = None, answer: bytes | None = None
) -> None:
    """One that is past its time makes room for the new one."""
    tx.run(_FORGET, whose=key.principal, named=key.key, good_since=tx.now - LIFE)
    tx.run(
        _KEEP,
        principal=key.principal,
        key=key.key,
        request_hash=key.request_hash,
        intent_id=intent_id,
        status=status,
        answer=answer,
        created=tx.now,
    )
