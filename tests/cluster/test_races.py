"""Transactions of two hubs that meet in the middle: each statement waits for what it must not overlook."""

from __future__ import annotations

import anyio
import pytest

from kernel.agent import AgentChange, AgentId, Phase, Report
from kernel.broker import Provider
from kernel.config import Settings
from kernel.errors import IdempotencyConflict
from kernel.intent import Op, State
from kernel.storage import IdempotencyKey, Recorded, Recording, Storage
from kernel.testing.storage.world import FAILURE, World, uuid
from plugins.storage.postgres.connecting import Connection, Target
from plugins.storage.postgres.opening import opened
from tests.cluster.steering import OTHER, met, other, waits_for_a_lock, watcher, world

__all__ = ["other", "watcher", "world"]
pytestmark = pytest.mark.anyio

TAKE = (
    "UPDATE broker_dispatch SET state = 'in_progress', attempts = attempts + 1, claimed_by = $2, claimed_session = $3,"
    " claimed_epoch = $4, claimed_at = now() WHERE id = $1"
)
NEWER_SESSION = (
    "UPDATE runtime_brokers SET connection_epoch = connection_epoch + 1, connected_session_id = gen_random_uuid()"
    " WHERE id = $1"
)


# -- claims and sessions -------------------------------------------------------------------------------------------


async def test_a_claim_and_a_newer_session_that_meet_leave_nothing_behind(
    world: World, other: Connection, watcher: Connection
) -> None:
    """The newer session is written and not committed yet when the older one claims: the claim waits, and takes nothing.
    Else its work would be in the hands of a session that nobody drives again."""
    intent = await world.record(Op.STOP, await world.new_agent())
    await other.execute("BEGIN")
    await other.execute(NEWER_SESSION, world.broker.id)
    async with anyio.create_task_group() as tasks:

        async def claim() -> None:
            claims = await world.claim()
            assert (claims.stale, claims.intents) == (True, ())

        tasks.start_soon(claim)
        await waits_for_a_lock(watcher, "pointsman-")
        await other.execute("COMMIT")
    assert (await world.read(intent.id)).state is State.PENDING


async def test_a_late_answer_leaves_an_agent_alone_that_a_newer_session_reported(
    world: World, other: Connection, watcher: Connection
) -> None:
    """The broker moved and told another hub of its agent, while the first one stores what it was answered before."""
    agent = await world.new_agent(Phase.STOPPED)
    new = world.intent(Op.START, agent)
    end = world.ending(new, change=AgentChange(phase=Phase.RUNNING))
    settled = await met(
        other,
        watcher,
        lambda: world.storage.insert_ended(new, end),
        ("UPDATE agents SET phase = 'error', state_version = state_version + 1 WHERE id = $1", agent.id),
        (NEWER_SESSION, world.broker.id),
        by="pointsman-",
    )
    assert not isinstance(settled, Exception)
    assert settled.accepted
    assert (await world.read_agent(agent.id)).phase is Phase.ERROR


# -- cancels -------------------------------------------------------------------------------------------------------


async def test_a_cancel_that_meets_a_claim_knows_in_whose_hands_it_is(
    world: World, other: Connection, watcher: Connection
) -> None:
    """Else nobody could be asked to stop it."""
    intent = await world.record(Op.STOP, await world.new_agent())
    session = world.session
    took = (TAKE, intent.id, session.node_id, session.session_id, session.epoch)
    cancelled = await met(other, watcher, lambda: world.storage.cancel(intent.id, world.node), took)
    assert not isinstance(cancelled, Exception)
    assert (cancelled.outcome, cancelled.intent.claimed_by) == ("cancel_requested", session.node_id)


async def test_a_cancel_that_meets_the_end_says_that_it_ended(
    world: World, other: Connection, watcher: Connection
) -> None:
    intent = await world.record(Op.STOP, await world.new_agent())
    ended = ("UPDATE broker_dispatch SET state = 'expired', ended_at = now() WHERE id = $1", intent.id)
    cancelled = await met(other, watcher, lambda: world.storage.cancel(intent.id, world.node), ended)
    assert not isinstance(cancelled, Exception)
    assert (cancelled.outcome, cancelled.intent.state) == ("already_ended", State.EXPIRED)


async def test_a_cancel_that_meets_an_attempt_which_is_over_ends_what_is_pending(
    world: World, other: Connection, watcher: Connection
) -> None:
    intent = await world.record(Op.STOP, await world.new_agent())
    tried = ("UPDATE broker_dispatch SET attempts = 1 WHERE id = $1", intent.id)
    cancelled = await met(other, watcher, lambda: world.storage.cancel(intent.id, world.node), tried)
    assert not isinstance(cancelled, Exception)
    assert cancelled.outcome == "cancelled"
    assert cancelled.intent.error
    assert cancelled.intent.error.code == "outcome_unknown"


async def test_an_expiry_that_meets_an_attempt_which_is_over_leaves_nothing_that_starts_later(
    world: World, other: Connection, watcher: Connection
) -> None:
    intent = await world.record(Op.STOP, await world.new_agent())
    tried = ("UPDATE broker_dispatch SET attempts = 1 WHERE id = $1", intent.id)
    changed = await met(other, watcher, lambda: world.storage.expire([intent.id], FAILURE, world.node), tried)
    assert not isinstance(changed, Exception)
    assert [one.state for one in changed.intents] == [State.EXPIRED]
    assert changed.intents[0].error
    assert changed.intents[0].error.code == "outcome_unknown"


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_one_key_at_two_hubs_makes_one_intent(world: World, postgres_dsn: str) -> None:
    """Also when both ask at the same moment, on the way of every call."""
    again = await opened(Target(dsn=postgres_dsn), Settings(), OTHER)
    try:
        for n in range(10):
            agent = await world.new_agent()
            key = IdempotencyKey(principal="user:test", key=f"key {n}", request_hash="same")
            asked = [Recording(intents=(world.intent(Op.START, agent),), key=key) for _ in range(2)]
            answers = await _recorded_at_once((world.storage, asked[0]), (again, asked[1]))
            (made,) = [one.id for answer in answers for one in answer.intents]
            (told,) = [answer.repeated.intent_id for answer in answers if answer.repeated]
            assert told == made
    finally:
        await again.close()


async def _recorded_at_once(*asked: tuple[Storage, Recording]) -> list[Recorded]:
    answers: list[Recorded] = []

    async def record(storage: Storage, recording: Recording) -> None:
        answers.append(await storage.record(recording))

    async with anyio.create_task_group() as tasks:
        for one in asked:
            tasks.start_soon(record, *one)
    return answers


KEPT = "INSERT INTO idempotency_keys (principal, key, request_hash, intent_id, created) VALUES ($1, $2, $3, $4, now())"


@pytest.mark.parametrize("request_hash", ["same", "other"])
@pytest.mark.parametrize("plain", [True, False])
async def test_a_key_that_another_hub_is_about_to_keep_is_waited_for(
    world: World, other: Connection, watcher: Connection, request_hash: str, plain: bool
) -> None:
    """Whichever way each of the two goes: the one of every call, or that of calls which make more than a row."""
    first, agent = uuid(), await world.new_agent()
    key = IdempotencyKey(principal="user:test", key="one", request_hash="same")
    recording = Recording(intents=(world.intent(Op.STOP, agent),), key=key, answer=None if plain else b"told")
    told = await met(
        other,
        watcher,
        lambda: world.storage.record(recording),
        (KEPT, "user:test", "one", request_hash, first),
        by="pointsman-",
    )
    if request_hash == "other":
        assert isinstance(told, IdempotencyConflict)
        return
    assert not isinstance(told, Exception)
    assert told.repeated
    assert told.repeated.intent_id == first
    assert not await world.storage.find_intents([recording.intents[0].id])


async def test_a_key_that_another_hub_kept_since_it_was_looked_for_is_not_taken_over(
    world: World, other: Connection, watcher: Connection
) -> None:
    """One call with the key goes the way of calls that make more than a row, and waits there for something else; the
    other is done meanwhile."""
    agent = await world.new_agent()
    key = IdempotencyKey(principal="user:test", key="one", request_hash="same")
    provider = Provider(project_id=world.project.id, broker_id=world.broker.id, broker_name=world.broker.name)
    recording = Recording(intents=(world.intent(Op.START, agent),), key=key, provider=provider)
    first = uuid()
    told = await met(
        other,
        watcher,
        lambda: world.storage.record(recording),
        ("SELECT 1 FROM projects WHERE id = $1 FOR UPDATE", world.project.id),
        (KEPT, "user:test", "one", "same", first),
    )
    assert not isinstance(told, Exception)
    assert told.repeated
    assert told.repeated.intent_id == first


async def test_an_intent_whose_first_recording_is_still_under_way_is_answered_with_its_row(
    world: World, other: Connection, watcher: Connection
) -> None:
    """The connection broke, the server did not notice, and the caller repeats."""
    agent = await world.new_agent()
    new = world.intent(Op.STOP, agent, claim=world.session, attempts=1)
    copied = await world.record(Op.STOP, agent)
    fields = "broker_id, agent_id, agent_slug, project_id, op, lane, state, deadline_at, route, principal, request_id,"
    fields += " node_id, created_at"
    text = f"INSERT INTO broker_dispatch (id, seq, {fields}) SELECT $2, nextval('dispatch_seq'), {fields}"
    first = (f"{text} FROM broker_dispatch WHERE id = $1", copied.id, new.id)
    told = await met(other, watcher, lambda: world.storage.record(Recording(intents=(new,))), first)
    assert not isinstance(told, Exception), told
    assert [one.id for one in told.intents] == [new.id]


# -- agents --------------------------------------------------------------------------------------------------------


async def test_however_many_report_of_one_agent_at_once_each_is_heard(world: World, postgres_dsn: str) -> None:
    agent = await world.runs(await world.new_agent())
    again = await opened(Target(dsn=postgres_dsn), Settings(), OTHER)
    try:
        async with anyio.create_task_group() as tasks:
            for n in range(60):
                detail = {f"word {n}": n}
                report = Report(agent_id=AgentId(agent.id), source="broker", run_id=agent.run_id, detail=detail)
                tasks.start_soon((world.storage, again)[n % 2].report, report)
    finally:
        await again.close()
    assert len((await world.read_agent(agent.id)).detail) == 60


async def test_a_message_that_meets_the_end_of_its_agent_does_not_wait_for_ever(
    world: World, other: Connection
) -> None:
    """It was written when the agent was still there, and not seen yet when that was deleted."""
    agent = await world.new_agent()
    copied = await world.record(Op.MESSAGE, await world.new_agent())
    deletion = await world.claimed(Op.DELETE, agent)
    fields = "project_id, sender, recipient, msg, broker_id, agent_slug, deadline_at, route, principal, request_id,"
    fields += " node_id, created"
    text = f"INSERT INTO messages (id, seq, recipient_agent_id, dispatch_state, {fields})"
    text += f" SELECT $2, nextval('dispatch_seq'), $3, 'pending', {fields}"
    late = uuid()
    await other.execute("BEGIN")
    await other.execute(f"{text} FROM messages WHERE id = $1", copied.id, late, agent.id)
    settled = await world.end(deletion, change=AgentChange(removal="soft"))
    assert settled.accepted
    await other.execute("COMMIT")
    changed = await world.storage.redrive(world.node, 100)
    assert [(one.id, one.state) for one in changed.intents] == [(late, State.CANCELLED)]
