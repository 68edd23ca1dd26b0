"""Where an intent's row begins: recorded before it is acknowledged, or stored with its end at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from kernel import (
    STARTS,
    Agent,
    IdempotencyKey,
    Intent,
    IntentId,
    NewIntent,
    NotFound,
    Recorded,
    Recording,
    Repeated,
    State,
    Transition,
    is_uuid,
)
from plugins.storage.ledger.agents import insert_agent
from plugins.storage.ledger.endings import SUPERSEDED, finish_pending
from plugins.storage.ledger.eras import Unsure
from plugins.storage.ledger.filling import OF_MESSAGE, SHARED, next_seq, row_of
from plugins.storage.ledger.history import born
from plugins.storage.ledger.homes import CONTROL, HOMES, MESSAGES, Home, home_of
from plugins.storage.ledger.keys import find_key, in_turn, keep_key
from plugins.storage.ledger.lookups import find_intents
from plugins.storage.ledger.projects import provide
from plugins.storage.ledger.query import NextSeq, Query, Tx, first, param
from plugins.storage.ledger.together import begin_together, fits
from plugins.storage.schema import runtime_brokers

_b = runtime_brokers.c
# Shared: whoever deletes the broker waits for this agent, and then finds it.
_THERE = Query[int](
    sa.select(sa.literal_column("1"))
    .where(_b.id == param("which"), _b.deleted_at.is_(None))
    .with_for_update(read=True, key_share=True),
    first,
)
_CARRIED = Query[int](
    sa.select(_b.connection_epoch)
    .where(
        _b.id == param("which"),
        _b.connected_hub_id == param("node"),
        _b.connected_session_id == param("session"),
        _b.connection_epoch == param("epoch"),
    )
    .with_for_update(read=True),
    first,
)


def _insert(home: Home) -> Query[Intent]:
    names = [*(name for name in SHARED if name != "seq"), home.agent.name, home.state.name, home.created.name]
    names += OF_MESSAGE if home is MESSAGES else ("op", "lane")
    statement = sa.insert(home.table).values({**{name: param(name) for name in names}, "seq": NextSeq()})
    return Query(statement.returning(*home.shape.columns), home.shape.read)


_INSERT = {home.lane: _insert(home) for home in HOMES}
_KNOWN = {home.lane: Query[Intent](home.select().where(home.c.id == param("which")), home.shape.read) for home in HOMES}
_STARTS = Query[Intent](
    CONTROL.select().where(
        CONTROL.c.broker_id == param("broker"),
        CONTROL.agent == param("agent"),
        CONTROL.unfinished(),
        CONTROL.state == State.PENDING,
        CONTROL.c.attempts == 0,
        sa.not_(Unsure(CONTROL.c.seq)),
        sa.or_(*(CONTROL.c.op == op for op in sorted(STARTS))),
    ),
    CONTROL.shape.read,
)


def record(tx: Tx, recording: Recording) -> Recorded:
    """Everything that becomes true when a call is accepted.

    Raises: IdempotencyConflict; AlreadyExists when the agent's slug is taken; NotFound when its broker is gone;
    Invalid.
    """
    for key in sorted(_keys(recording), key=lambda key: (key.principal, key.key)):  # in one order, whoever asks
        in_turn(tx, key)
    repeated = _repeated(tx, recording)
    if repeated:
        return Recorded(repeated=repeated)
    if recording.intents and known_before(tx, recording.intents[0]):  # one of them is there: all of them are
        return Recorded(intents=tuple(find_intents(tx, [new.id for new in recording.intents])))
    taken = _taken(tx, recording)
    if taken:
        return Recorded(taken=taken)
    if recording.provider:
        provide(tx, recording.provider)
    if recording.agent:
        _on_a_broker(tx, recording.agent)
        insert_agent(tx, recording.agent)
    transitions: list[Transition] = []
    superseded = _supersede(tx, recording, transitions) if recording.supersedes_starts else []
    intents = _begin_all(tx, recording.intents, transitions)
    if recording.key:
        keep_key(tx, recording.key, intent_id=intents[0].id if intents else None, answer=recording.answer)
    for new in recording.intents:
        if new.key:
            keep_key(tx, new.key, intent_id=new.id)
    return Recorded(intents=tuple(intents), superseded=tuple(superseded), transitions=tuple(transitions))


def _on_a_broker(tx: Tx, agent: Agent) -> None:
    broker_id = agent.runtime_broker_id
    if broker_id and (not is_uuid(broker_id) or tx.one(_THERE, which=broker_id) is None):
        raise NotFound(f"broker {broker_id} is gone: name another for agent {agent.slug}")


def known_before(tx: Tx, new: NewIntent) -> Intent | None:
    """Its row, if it was written before and only the answer was lost."""
    return tx.one(_KNOWN[home_of(new.op).lane], which=new.id)


def _repeated(tx: Tx, recording: Recording) -> Repeated | None:
    """What the key was used for before; not by this very recording, whose answer may have been lost."""
    found = find_key(tx, recording.key) if recording.key else None
    mine = {new.id for new in recording.intents}
    return None if found is None or found.intent_id in mine else found


def _keys(recording: Recording) -> list[IdempotencyKey]:
    return [key for key in (recording.key, *(new.key for new in recording.intents)) if key]


def _taken(tx: Tx, recording: Recording) -> tuple[IntentId, ...]:
    """Intents whose own keys somebody used before."""
    return tuple(new.id for new in recording.intents if new.key and find_key(tx, new.key))


def _supersede(tx: Tx, recording: Recording, transitions: list[Transition]) -> list[Intent]:
    ended: list[Intent] = []
    for new in recording.intents:
        starts = tx.all(_STARTS, broker=new.broker_id, agent=new.agent_id)
        by = {"by": new.id, "op": new.op}
        for start, told in finish_pending(tx, starts, State.CANCELLED, SUPERSEDED, "superseded", new.node_id, by):
            ended.append(start)
            transitions.append(told)
    return ended


def _begin_all(tx: Tx, new: Sequence[NewIntent], transitions: list[Transition]) -> list[Intent]:
    if not fits(new):
        return [_begin(tx, one, transitions) for one in new]
    intents, told = begin_together(tx, new)
    transitions.extend(told)
    return intents


def _begin(tx: Tx, new: NewIntent, transitions: list[Transition]) -> Intent:
    in_hand = new.claim is not None and carried(tx, new)
    state = State.IN_PROGRESS if in_hand else State.PENDING
    values: dict[str, Any] = {}
    if new.claim:
        values = {"claimed_epoch": new.claim.epoch, "sent_at": new.sent_at}
    if in_hand and new.claim:
        values |= {"claimed_by": new.claim.node_id, "claimed_session": new.claim.session_id, "claimed_at": tx.now}
    intent = insert(tx, new, state=state, **values)
    transitions.extend(born(tx, intent, new.advice))
    return intent


def carried(tx: Tx, new: NewIntent) -> bool:
    """Whether the broker's row still carries the session in whose hands the work is."""
    claim = new.claim
    assert claim is not None
    values = {"which": claim.broker_id, "node": claim.node_id, "session": claim.session_id, "epoch": claim.epoch}
    return tx.one(_CARRIED, **values) is not None


def insert(tx: Tx, new: NewIntent, **values: Any) -> Intent:
    """Write the row; `values` are those of its state beyond what is new."""
    row = row_of(tx, new, seq=next_seq(tx) if tx.alone else None, **values)
    found = tx.one(_INSERT[home_of(new.op).lane], **row)
    assert found is not None
    return found
