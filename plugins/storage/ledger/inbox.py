"""Messages as people read them; those to agents are intents besides, which the dispatch delivers."""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa

from kernel import Message, Page, State, is_uuid
from plugins.storage.ledger.pages import beyond, edge
from plugins.storage.ledger.query import NOW, Query, Tx, first, param
from plugins.storage.ledger.rows import MESSAGE
from plugins.storage.schema import Flag, messages

_c = messages.c
_INSERT = Query(
    sa.insert(messages)
    .values({name: param(name) for name in Message.__struct_fields__} | {"ended_at": NOW})
    .returning(*MESSAGE.columns),
    MESSAGE.read,
)
_READ = Query[Any](
    sa.update(messages)
    .values(read=sa.literal(True, Flag()))
    .where(_c.id == param("which"), _c.recipient_id == param("whose"))
)


def _terms(given: frozenset[str], unread: bool) -> list[Any]:
    terms: list[Any] = [_c.recipient_id == param("whose")]
    terms += [_c[name] == param(f"of_{name}") for name in sorted(given)]
    return [*terms, sa.not_(_c.read)] if unread else terms


@cache
def _listing(given: frozenset[str], unread: bool, onward: bool) -> Query[Message]:
    terms = _terms(given, unread)
    if onward:
        terms.append(beyond(_c.created, _c.id))
    newest = sa.select(*MESSAGE.columns).where(*terms).order_by(_c.created.desc(), _c.id.desc())
    return Query(newest.limit(param("take")), MESSAGE.read)


@cache
def _counting(given: frozenset[str], unread: bool) -> Query[int]:
    return Query(sa.select(sa.func.count()).select_from(messages).where(*_terms(given, unread)), first)


def list_messages(tx: Tx, recipient_id: str, page: Page, unread: bool, filters: dict[str, str | None]) -> list[Message]:
    """`filters`: project_id, agent_id, type."""
    if not _may_find(filters):
        return []
    given = _given(filters)
    query = _listing(frozenset(given), unread, page.after is not None)
    return tx.all(query, whose=recipient_id, take=page.limit + 1, **_named(given), **edge(page))


def count_messages(tx: Tx, recipient_id: str, unread: bool, filters: dict[str, str | None]) -> int:
    """`filters` as in `list_messages`."""
    if not _may_find(filters):
        return 0
    given = _given(filters)
    return tx.one(_counting(frozenset(given), unread), whose=recipient_id, **_named(given)) or 0


def _may_find(filters: dict[str, str | None]) -> bool:
    """What is no id names nothing."""
    ids = (filters.get(name) for name in ("project_id", "agent_id"))
    return all(given is None or is_uuid(given) for given in ids)


def _given(filters: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in filters.items() if value is not None}


def _named(given: dict[str, str]) -> dict[str, str]:
    return {f"of_{name}": value for name, value in given.items()}


def add_message(tx: Tx, message: Message) -> Message:
    """A message to a user: never dispatched."""
    values = {name: getattr(message, name) for name in Message.__struct_fields__}
    added = tx.one(_INSERT, **{**values, "dispatch_state": State.NONE, "created": tx.now})
    assert added is not None
    return added


def mark_read(tx: Tx, message_id: str, recipient_id: str) -> bool:
    return is_uuid(message_id) and tx.run(_READ, which=message_id.lower(), whose=recipient_id) > 0
