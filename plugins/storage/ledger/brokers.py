"""Brokers and their credentials: registered by a user, joined once by the program, deleted softly."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kernel import (
    Broker,
    BrokerEdit,
    BrokerId,
    BrokerJoin,
    BrokerRegistration,
    ExpiredJoinToken,
    Forbidden,
    Instant,
    InvalidJoinToken,
    InvalidState,
    NotFound,
    Page,
    Registered,
    Repeated,
    SealedSecret,
    is_uuid,
)
from plugins.storage.ledger.keys import find_key, in_turn, keep_key
from plugins.storage.ledger.pages import beyond, edge
from plugins.storage.ledger.query import NOW, Query, Tx, first, param
from plugins.storage.ledger.rows import BROKER, NOBODY
from plugins.storage.schema import Flag, agents, broker_join_tokens, broker_secrets, nonces, runtime_brokers

NONCE_LIFE = 600 * 1_000_000
"""Microseconds for which a nonce is remembered: twice the clock window of a signature."""

_b = runtime_brokers.c
_live = _b.deleted_at.is_(None)
_ANY = Query(sa.select(*BROKER.columns).where(_b.id == param("ref")), BROKER.read)
_BY_ID = Query(sa.select(*BROKER.columns).where(_b.id == param("ref"), _live), BROKER.read)
# Alone with the row: what is read from it stays true until it is written.
_LOCKED = Query(_BY_ID.statement.with_for_update(of=runtime_brokers), BROKER.read)  # type: ignore[attr-defined]
_BY_NAME = Query(sa.select(*BROKER.columns).where(_b.name == param("ref"), _live), BROKER.read)
_BY_SLUG = Query(sa.select(*BROKER.columns).where(_b.slug == param("ref"), _live), BROKER.read)
_COUNT = Query[int](sa.select(sa.func.count()).select_from(runtime_brokers).where(_live), first)
_newest = sa.select(*BROKER.columns).where(_live).order_by(_b.created.desc(), _b.id.desc()).limit(param("take"))
_LIST = Query(_newest, BROKER.read)
_LIST_ON = Query(_newest.where(beyond(_b.created, _b.id)), BROKER.read)


def find_broker(tx: Tx, ref: str) -> Broker | None:
    """By id, slug or name."""
    found = tx.one(_BY_ID, ref=ref.lower()) if is_uuid(ref) else None
    if found or not ref.isprintable():
        return found
    return tx.one(_BY_SLUG, ref=ref) or tx.one(_BY_NAME, ref=ref)


def list_brokers(tx: Tx, page: Page) -> list[Broker]:
    return tx.all(_LIST_ON if page.after else _LIST, take=page.limit + 1, **edge(page))


def count_brokers(tx: Tx) -> int:
    return tx.one(_COUNT) or 0


# -- registration -------------------------------------------------------------------------------------------

_INSERT = Query[Any](
    sa.insert(runtime_brokers).values(
        id=param("id"),
        name=param("name"),
        slug=param("slug"),
        labels=param("labels"),
        auto_provide=param("auto_provide"),
        endpoint=param("endpoint"),
        created_by=param("created_by"),
        created=NOW,
        updated=NOW,
    )
)
_AGAIN = Query[Any](
    sa.update(runtime_brokers)
    .values(
        name=param("to_name"),
        slug=param("to_slug"),
        labels=param("to_labels"),
        auto_provide=param("to_auto_provide"),
        endpoint=sa.func.coalesce(param("to_endpoint", sa.Text()), _b.endpoint),
        deleted_at=None,
        updated=NOW,
        lock_version=_b.lock_version + 1,
    )
    .where(_b.id == param("which"))
)
_t = broker_join_tokens.c
_FORGET_TOKENS = Query[Any](sa.delete(broker_join_tokens).where(_t.broker_id == param("which"), _t.used_at.is_(None)))
_TOKEN = Query[Any](
    sa.insert(broker_join_tokens).values(
        id=param("id"),
        broker_id=param("broker"),
        token_hash=param("hashed"),
        created_by=param("maker"),
        created=NOW,
        expires_at=param("until"),
    )
)


def register_broker(tx: Tx, asked: BrokerRegistration) -> Registered:
    """The newest join token of a broker is the one that counts.

    Raises: Forbidden when the name or id is another user's broker; AlreadyExists when the slug is taken;
    IdempotencyConflict; NotFound when the broker of an earlier call with the key was deleted since.
    """
    if asked.key:
        in_turn(tx, asked.key)
        before = find_key(tx, asked.key)
        if before:
            return _registered_before(tx, before)
    tx.queue(f"broker {asked.name}")  # its name is unique: who comes second registers it again
    known = tx.one(_ANY, ref=asked.broker_id) or tx.one(_BY_NAME, ref=asked.name)
    if known is None:
        tx.run(
            _INSERT,
            id=asked.broker_id,
            name=asked.name,
            slug=asked.slug,
            labels=asked.labels,
            auto_provide=asked.auto_provide,
            endpoint=asked.endpoint,
            created_by=asked.created_by,
        )
    else:
        _register_again(tx, known, asked)
    broker_id = known.id if known else asked.broker_id
    tx.run(_FORGET_TOKENS, which=broker_id)
    until = Instant(tx.now + int(asked.token_lives * 1_000_000))
    tx.run(_TOKEN, id=asked.token_id, broker=broker_id, hashed=asked.token_hash, maker=asked.created_by, until=until)
    if asked.key:
        kept = Kept(
            broker_id=broker_id, expires_at=until, reregistered=known is not None, sealed_token=asked.sealed_token
        )
        keep_key(tx, asked.key, status=201, answer=msgspec.json.encode(kept))
    broker = tx.one(_BY_ID, ref=broker_id)
    assert broker is not None
    return Registered(broker=broker, expires_at=until, reregistered=known is not None)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What a key remembers of a registration."""

    broker_id: str
    expires_at: Instant
    reregistered: bool
    sealed_token: bytes


def _registered_before(tx: Tx, before: Repeated) -> Registered:
    kept = msgspec.json.decode(before.answer or b"", type=Kept)
    broker = tx.one(_BY_ID, ref=kept.broker_id)
    if broker is None:
        raise NotFound("the broker that this key registered was deleted: register it anew, with another key")
    return Registered(
        broker=broker, expires_at=kept.expires_at, reregistered=kept.reregistered, sealed_token=kept.sealed_token
    )


def _register_again(tx: Tx, known: Broker, asked: BrokerRegistration) -> None:
    if known.created_by != asked.created_by and not asked.by_admin:
        raise Forbidden(f"a broker {known.name} was registered by somebody else: choose another name")
    tx.run(
        _AGAIN,
        which=known.id,
        to_name=asked.name,
        to_slug=asked.slug,
        to_labels=asked.labels,
        to_auto_provide=asked.auto_provide,
        to_endpoint=asked.endpoint,
    )
    if asked.endpoint and asked.endpoint != known.endpoint:
        tx.run(_LET_GO, which=known.id)


# -- credentials --------------------------------------------------------------------------------------------

_FIND_TOKEN = Query[tuple[Instant, Instant | None]](
    sa.select(_t.expires_at, _t.used_at).where(_t.token_hash == param("hashed"), _t.broker_id == param("broker"))
)
_USE_TOKEN = Query[Any](
    sa.update(broker_join_tokens)
    .values(used_at=NOW)
    .where(_t.token_hash == param("hashed"), _t.used_at.is_(None), _t.expires_at > NOW)
)
_s = broker_secrets.c
_REVOKE = Query[Any](
    sa.update(broker_secrets).values(status="revoked").where(_s.broker_id == param("which"), _s.status != "revoked")
)
_secret = postgresql.insert(broker_secrets).values(
    broker_id=param("broker"), key_id=param("key"), sealed=param("sealed_key"), status="active", created=NOW
)
_SECRET = Query[Any](_secret)
_SECRETS = Query(
    sa.select(_s.key_id, _s.sealed)
    .join(runtime_brokers, sa.and_(_b.id == _s.broker_id, _live))
    .where(
        _s.broker_id == param("which"),
        _s.status != "revoked",
        sa.or_(_s.expires_at.is_(None), _s.expires_at > NOW),
    )
    .order_by(_s.created.desc(), _s.key_id.desc()),
    lambda row: SealedSecret(key_id=row[0], sealed=row[1]),
)
_JOINED = Query[Any](
    sa.update(runtime_brokers)
    .values(
        version=sa.func.coalesce(param("runs", sa.Text()), _b.version),
        capabilities=param("can"),
        announced=param("can", _b.announced.type),
        conflict=False,
        updated=NOW,
        lock_version=_b.lock_version + 1,
    )
    .where(_b.id == param("which"))
)


def join_broker(tx: Tx, join: BrokerJoin) -> Broker:
    """Swap a join token for a secret, once; what the broker had before is revoked, the session that stands on it is
    cleared, and a conflict is over. The answer still names that session, so that its node can be told.

    Raises: InvalidJoinToken, ExpiredJoinToken.
    """
    broker_id = join.broker_id.lower()
    broker = tx.one(_LOCKED, ref=broker_id) if is_uuid(join.broker_id) else None
    token = tx.one(_FIND_TOKEN, hashed=join.token_hash, broker=broker_id) if broker else None
    if token is None or token[1] is not None:
        raise InvalidJoinToken()
    if tx.run(_USE_TOKEN, hashed=join.token_hash) == 0:
        _refuse(tx.one(_FIND_TOKEN, hashed=join.token_hash, broker=broker_id))
    tx.run(_REVOKE, which=broker_id)
    tx.run(_SECRET, broker=broker_id, key=join.key_id, sealed_key=join.sealed)
    tx.run(_JOINED, which=broker_id, runs=join.version, can=join.capabilities)
    tx.run(_CLEARED, which=broker_id)
    joined = tx.one(_BY_ID, ref=broker_id)
    assert broker is not None
    assert joined is not None
    former = {"connected_hub_id": broker.connected_hub_id, "connected_session_id": broker.connected_session_id}
    return msgspec.structs.replace(joined, **former)


def _refuse(token: tuple[Instant, Instant | None] | None) -> None:
    """Somebody else used it in between, or its time is over."""
    if token is None or token[1] is not None:
        raise InvalidJoinToken()
    raise ExpiredJoinToken()


def broker_secrets_of(tx: Tx, broker_id: BrokerId) -> list[SealedSecret]:
    return tx.all(_SECRETS, which=broker_id.lower()) if is_uuid(broker_id) else []


_remember = postgresql.insert(nonces).values(broker_id=param("broker"), nonce=param("once"), seen_at=NOW)
_REMEMBER = Query[Any](
    _remember.on_conflict_do_update(
        index_elements=[nonces.c.broker_id, nonces.c.nonce],
        set_={"seen_at": NOW},
        where=nonces.c.seen_at <= param("forgotten"),
    )
)


def use_nonce(tx: Tx, broker_id: BrokerId, nonce: str) -> bool:
    return tx.run(_REMEMBER, broker=broker_id, once=nonce, forgotten=tx.now - NONCE_LIFE) > 0


# -- changed, deleted ---------------------------------------------------------------------------------------

_EDIT = Query[Any](
    sa.update(runtime_brokers)
    .values(
        paused=sa.func.coalesce(param("to_paused", Flag()), _b.paused),
        conflict=sa.func.coalesce(param("to_conflict", Flag()), _b.conflict),
        auto_provide=sa.func.coalesce(param("to_auto_provide", Flag()), _b.auto_provide),
        name=sa.func.coalesce(param("to_name", sa.Text()), _b.name),
        labels=sa.func.coalesce(param("to_labels", _b.labels.type), _b.labels),
        endpoint=sa.func.nullif(sa.func.coalesce(param("to_endpoint", sa.Text()), _b.endpoint), ""),
        last_heartbeat=sa.case((param("beats", sa.Integer()) == 1, NOW), else_=_b.last_heartbeat),
        updated=NOW,
        lock_version=_b.lock_version + 1,
    )
    .where(_b.id == param("which"), _live)
)
_HELD_BY_NOBODY: dict[str, Any] = {
    "connected_hub_id": None,
    "connected_session_id": None,
    "connection_kind": None,
    "status": "offline",
    "disconnected_at": NOW,
    "updated": NOW,
    "lock_version": _b.lock_version + 1,
}
_held = sa.and_(_b.id == param("which"), _b.connected_hub_id.is_not(None))
_LET_GO = Query[Any](sa.update(runtime_brokers).values(_HELD_BY_NOBODY).where(_held, _b.connection_kind == "direct"))
"""Its endpoint is another: whoever calls the old one has lost the broker, and its renewal tells it so."""
_CLEARED = Query[Any](sa.update(runtime_brokers).values(_HELD_BY_NOBODY).where(_held))
"""Its secret is another: whoever holds the socket of the old one has lost the broker, signal or no signal."""
_DELETE = Query[Any](
    sa.update(runtime_brokers)
    .values(deleted_at=NOW, updated=NOW, lock_version=_b.lock_version + 1)
    .where(_b.id == param("which"))
)
_LIVE_AGENTS = Query[int](
    sa.select(sa.literal_column("1"))
    .where(agents.c.runtime_broker_id == param("which"), agents.c.deleted_at.is_(None))
    .limit(1),
    first,
)


def edit_broker(tx: Tx, edit: BrokerEdit) -> Broker:
    """Raises: NotFound; AlreadyExists when the new name is taken."""
    which = edit.broker_id.lower() if is_uuid(edit.broker_id) else NOBODY
    before = tx.one(_LOCKED, ref=which) if edit.endpoint is not None else None
    tx.run(
        _EDIT,
        which=which,
        to_paused=edit.paused,
        to_conflict=edit.conflict,
        to_auto_provide=edit.auto_provide,
        to_name=edit.name,
        to_labels=edit.labels,
        to_endpoint=edit.endpoint,
        beats=int(edit.heartbeat),
    )
    if before and before.endpoint != (edit.endpoint or None):
        tx.run(_LET_GO, which=which)
    broker = tx.one(_BY_ID, ref=which)
    if broker is None:
        raise NotFound(f"there is no broker {edit.broker_id}")
    return broker


def delete_broker(tx: Tx, broker_id: BrokerId) -> None:
    """Its secrets are revoked, its session is cleared; what that had in hand, the sweep drives again.

    Raises: NotFound; InvalidState while it has live agents.
    """
    which = broker_id.lower() if is_uuid(broker_id) else NOBODY
    if tx.one(_LOCKED, ref=which) is None:
        raise NotFound(f"there is no broker {broker_id}")
    if tx.one(_LIVE_AGENTS, which=which):
        raise InvalidState("the broker still has agents: delete them first")
    tx.run(_DELETE, which=which)
    tx.run(_CLEARED, which=which)
    tx.run(_REVOKE, which=which)
    tx.run(_FORGET_TOKENS, which=which)
