"""Why is this still pending? Every answer, with its code (P10)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kernel.agent import Agent, AgentId, Phase
from kernel.broker import Broker, BrokerId
from kernel.clock import Instant
from kernel.config import Settings
from kernel.errors import Failure
from kernel.explain import Explanation, explained
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.node import Node, NodeId
from kernel.storage import LaneView
from kernel.transition import Transition

SECOND = 1_000_000
NOW = Instant(1_795_599_012 * SECOND)
SETTINGS = Settings()
VERSION = "2.0"


def ago(seconds: float) -> Instant:
    return Instant(NOW - int(seconds * SECOND))


def ahead(seconds: float) -> Instant:
    return ago(-seconds)


def intent(**facts: Any) -> Intent:
    plain = Intent(
        id=IntentId("i-1"),
        op=Op.STOP,
        lane=Lane.CONTROL,
        state=State.PENDING,
        broker_id="b",
        agent_id=AgentId("a"),
        agent_slug="worker",
        project_id="p",
        deadline_at=ahead(900),
        route="hold",
        principal="user:u",
        request_id="r",
        node_id="n",
        created_at=ago(10),
    )
    return msgspec.structs.replace(plain, **facts)


def in_hand(**facts: Any) -> Intent:
    taken = {
        "state": State.IN_PROGRESS,
        "claimed_by": "node-1",
        "claimed_epoch": 7,
        "claimed_at": ago(2),
        "attempts": 1,
    }
    return intent(**{**taken, **facts})


def broker(**facts: Any) -> Broker:
    connected: dict[str, Any] = {"online": True, "connection_epoch": 7, "connected_at": ago(60)}
    return Broker(id=BrokerId("b"), name="laptop", slug="laptop", **{**connected, **facts})


def agent(phase: Phase) -> Agent:
    return Agent(id=AgentId("a"), slug="worker", name="worker", project_id="p", phase=phase)


def hub(**facts: Any) -> Node:
    plain = {"id": NodeId("node-1"), "started_at": ago(9_000), "beat_at": ago(1), "version": VERSION}
    return Node(**{**plain, **facts})


def step(reason: str, **facts: Any) -> Transition:
    plain: dict[str, Any] = {"at": ago(1), "from_state": State.IN_PROGRESS, "to_state": State.PENDING, "n": 4}
    values = {**plain, "intent_id": IntentId("i-1"), "op": Op.STOP, "node_id": "node-2", "reason": reason, **facts}
    return Transition(**values)


def told(
    row: Intent,
    held: Broker | None = None,
    *,
    phase: Phase = Phase.RUNNING,
    deleted: bool = False,
    owner_alive: bool = True,
    **facts: Any,
) -> Explanation:
    view = LaneView(
        **{
            "intent": row,
            "agent": agent(phase),
            "broker": None if deleted else held or broker(),
            "behind": None,
            "owner_alive": owner_alive,
            "history": (),
            "owner": hub(),
            "now": NOW,
            **facts,
        }
    )
    return explained(view, SETTINGS, VERSION)


# -- nobody holds its broker -------------------------------------------------------------------------------------


def test_without_a_connection_it_waits_for_the_broker() -> None:
    away = broker(online=False, disconnected_at=ago(90), missing_for=90.0)
    found = told(intent(hold=True), away)
    assert found.code == "waiting_broker"
    assert "laptop is not connected since 2026-11-25" in found.sentence
    assert "90 s ago" in found.sentence
    assert "in 15 min" in found.sentence
    assert found.next_attempt_at is None


def test_what_nobody_asked_to_hold_expires_when_nobody_is_there() -> None:
    away = broker(online=False, disconnected_at=ago(90), missing_for=90.0)
    assert "it expires at 2026-11-25 09:30:14 UTC (in 2 s)" in told(intent(), away).sentence
    for kept in (intent(hold=True), intent(attempts=1), intent(op=Op.MESSAGE, lane=Lane.MESSAGE)):
        assert "expires" not in told(kept, away).sentence


def test_a_broker_between_two_sockets_is_told_with_its_grace() -> None:
    dialling = broker(online=False, disconnected_at=ago(2), disconnect_code=1006, missing_for=2.0)
    found = told(intent(), dialling)
    assert found.code == "waiting_broker"
    assert "between two sockets" in found.sentence
    assert "grace ends at 2026-11-25 09:30:15 UTC (in 3 s); if it is not there by then, it expires" in found.sentence
    assert "expires" not in told(intent(hold=True), dialling).sentence


def test_a_broker_that_said_goodbye_is_not_between_two_sockets() -> None:
    gone = broker(online=False, disconnected_at=ago(2), disconnect_code=1000, missing_for=2.0)
    assert "when it said goodbye" in told(intent(hold=True), gone).sentence


def test_a_hub_that_is_silent_while_it_holds_the_broker_is_told_with_its_end() -> None:
    held = broker(online=False, connected_hub_id="node-1")
    found = told(intent(), held, owner=hub(beat_at=ago(5)), owner_alive=False)
    assert found.code == "waiting_broker"
    assert "Hub node-1, which held broker laptop, was last heard of at 2026-11-25 09:30:07 UTC" in found.sentence
    assert found.next_attempt_at == ahead(SETTINGS.node.lost_after + SETTINGS.sweep.nodes - 5)


def test_an_endpoint_is_told_as_a_way() -> None:
    away = broker(online=False, disconnected_at=ago(90), endpoint="http://there", missing_for=90.0)
    assert "or when its HTTP endpoint answers" in told(intent(hold=True), away).sentence
    never = broker(online=False, connection_epoch=0, connected_at=None, endpoint="http://there")
    assert "or when its HTTP endpoint answers" in told(intent(hold=True), never).sentence


def test_a_broker_that_a_hub_calls_is_held() -> None:
    called = broker(online=False, connection_kind="direct", connected_hub_id="node-1", endpoint="http://there")
    assert told(intent(), called).code == "waiting_owner"
    assert told(intent(), called, owner_alive=False).code == "waiting_broker"


def test_an_endpoint_that_failed_a_moment_ago_is_no_socket() -> None:
    """A hub let it go because its answer was none; it may never have had a socket."""
    failed = broker(
        online=False, disconnected_at=ago(2), disconnect_code=1006, missing_for=2.0, endpoint="http://there"
    )
    assert "a hub asks its HTTP endpoint again" in told(intent(), failed).sentence


def test_a_broker_that_never_came_is_told_as_such() -> None:
    assert "never connected" in told(intent(), broker(online=False, connection_epoch=0)).sentence


def test_a_deleted_broker_is_waited_for_in_vain() -> None:
    assert told(intent(), deleted=True).code == "waiting_broker"


def test_a_paused_broker_comes_before_every_other_reason() -> None:
    found = told(intent(), broker(paused=True, online=False), behind=in_hand())
    assert found.code == "paused"
    assert "resumed" in found.sentence


# -- not yet -----------------------------------------------------------------------------------------------------


def test_a_message_waits_until_its_agent_runs() -> None:
    found = told(intent(op=Op.MESSAGE, lane=Lane.MESSAGE), phase=Phase.SUSPENDED)
    assert found.code == "waiting_agent"
    assert "worker is suspended: messages are delivered while it runs" in found.sentence


def test_an_operation_does_not_wait_for_its_agent() -> None:
    assert told(intent(), phase=Phase.STOPPED).code == "waiting_owner"


def test_it_waits_for_what_came_before_it_in_its_lane() -> None:
    before = in_hand(id=IntentId("i-0"), op=Op.START)
    found = told(intent(), behind=before)
    assert found.code == "waiting_lane"
    assert "start i-0" in found.sentence
    assert "in progress" in found.sentence


def test_an_answer_that_said_later_is_told_with_the_next_attempt() -> None:
    error = Failure(code="runtime_error", message="the broker answered 502", status=502)
    found = told(intent(attempts=2, next_attempt_at=ahead(4), error=error))
    assert found.code == "waiting_retry"
    assert found.next_attempt_at == ahead(4)
    assert "The 2nd attempt did not end it (the broker answered 502); the 3rd is made at" in found.sentence
    assert "in 4 s" in found.sentence


def test_an_attempt_that_is_due_is_no_retry() -> None:
    assert told(intent(attempts=2, next_attempt_at=ago(1))).code == "waiting_owner"


# -- forwarded to the hub that holds the broker ------------------------------------------------------------------


def test_what_was_forwarded_names_the_hub_and_when_its_claim_is_due() -> None:
    found = told(intent(created_at=ago(0.5)), broker(connected_hub_id="node-1"))
    assert found.code == "waiting_owner"
    assert "Hub node-1, which holds broker laptop, was woken for it and claims it by 2026-11-25" in found.sentence
    assert found.next_attempt_at == ahead(SETTINGS.bus.poll_healthy - 0.5)


def test_a_claim_is_due_from_the_time_on_when_the_broker_came() -> None:
    came = broker(connected_hub_id="node-1", connected_at=ago(0.5))
    assert told(intent(created_at=ago(600)), came).next_attempt_at == ahead(SETTINGS.bus.poll_healthy - 0.5)


@pytest.mark.parametrize(
    ("reason", "words"),
    [("link_lost", "its broker's socket was lost"), ("owner_lost", "its hub was lost")],
)
def test_what_lost_its_owner_says_that_it_is_driven_again(reason: str, words: str) -> None:
    found = told(intent(attempts=1), broker(connected_hub_id="node-1"), history=(step(reason),))
    assert f"driven again after the 1st attempt ({words})" in found.sentence
    assert found.next_attempt_at == ahead(SETTINGS.bus.poll_healthy - 1)


def test_a_hub_of_another_version_may_not_know_the_operation() -> None:
    found = told(intent(created_at=ago(60)), broker(connected_hub_id="node-1"), owner=hub(version="1.0"))
    assert found.code == "waiting_owner"
    assert "it runs version 1.0, this hub 2.0; if it does not know the operation stop" in found.sentence
    assert found.next_attempt_at == ahead(SETTINGS.bus.poll_healthy)


def test_a_hub_that_could_and_does_not_is_told_as_such() -> None:
    held = broker(connected_hub_id="node-1")
    assert "look at its log" in told(intent(created_at=ago(60)), held).sentence
    assert "it is stopping" in told(intent(created_at=ago(60)), held, owner=hub(draining=True)).sentence


def test_a_broker_that_works_on_all_it_takes_is_told_with_its_number() -> None:
    found = told(intent(), broker(window=3), in_flight=3)
    assert found.code == "waiting_owner"
    assert "laptop works on 3 requests, as many as it takes at once" in found.sentence


# -- in an owner's hands -----------------------------------------------------------------------------------------


def test_a_silent_owner_is_told_with_the_time_at_which_it_is_given_up() -> None:
    found = told(in_hand(), owner_alive=False, owner=hub(beat_at=ago(4)))
    assert found.code == "waiting_owner"
    assert "Hub node-1, which was last heard of at 2026-11-25 09:30:08 UTC (4 s ago), had taken it" in found.sentence
    assert found.next_attempt_at == ahead(SETTINGS.node.lost_after + SETTINGS.sweep.nodes - 4)


def test_an_owner_without_a_row_is_gone() -> None:
    found = told(in_hand(), owner_alive=False, owner=None)
    assert "which is gone" in found.sentence
    assert found.next_attempt_at == ahead(SETTINGS.sweep.stuck)


def test_an_epoch_that_moved_is_a_dead_owner() -> None:
    found = told(in_hand(sent_at=ago(1)), broker(connection_epoch=8))
    assert found.code == "waiting_owner"
    assert "under epoch 7; its broker's row carries epoch 8" in found.sentence
    assert found.next_attempt_at == ahead(SETTINGS.sweep.stuck)


def test_what_was_claimed_waits_in_its_owners_lane() -> None:
    assert told(in_hand(), behind=in_hand(id=IntentId("i-0"))).code == "waiting_lane"


def test_what_was_claimed_and_is_first_is_about_to_be_sent() -> None:
    found = told(in_hand())
    assert found.code == "waiting_owner"
    assert "node-1 took it at 2026-11-25 09:30:10 UTC (2 s ago) and is about to send it" in found.sentence


def test_what_was_claimed_long_ago_waits_for_what_has_no_row() -> None:
    found = told(in_hand(claimed_at=ago(20)))
    assert found.code == "waiting_lane"
    assert "has no row" in found.sentence


def test_what_was_claimed_waits_for_a_place_in_the_window() -> None:
    assert "as many as it takes at once" in told(in_hand(), broker(window=2), in_flight=2).sentence


def test_what_was_sent_waits_for_the_answer() -> None:
    found = told(in_hand(sent_at=ago(1.5)))
    assert found.code == "sent"
    assert (
        "sent it to broker laptop at 2026-11-25 09:30:10 UTC (2 s ago); the answer has not come yet" in found.sentence
    )


def test_what_the_broker_took_is_at_work_and_tells_of_progress() -> None:
    found = told(in_hand(sent_at=ago(3), accepted_at=ago(2), progress_at=ago(1)))
    assert found.code == "accepted"
    assert "accepted it at" in found.sentence
    assert "last told of progress at 2026-11-25 09:30:11 UTC (1 s ago)" in found.sentence


# -- ended -------------------------------------------------------------------------------------------------------


def ended(state: State, code: str = "", message: str = "", **facts: Any) -> Intent:
    error = Failure(code=code, message=message, status=504) if code else None
    return intent(**{"state": state, "ended_at": ago(5), "error": error, **facts})


def word(row: Intent, *history: Transition) -> str:
    found = told(row, history=history)
    assert found.code == "ended"
    assert found.next_attempt_at is None
    assert "5 s ago" in found.sentence
    assert row.state.value in found.sentence.lower()
    return found.sentence


def test_what_is_done_says_how_long_it_took_and_at_which_attempt() -> None:
    assert "acknowledged it, 2 s after it was sent" in word(ended(State.DONE, attempts=1, sent_at=ago(7)))
    assert "at the 3rd attempt" in word(ended(State.DONE, attempts=3))


def test_a_deletion_of_what_the_broker_does_not_know_is_done() -> None:
    assert "nothing was left to be deleted" in word(ended(State.DONE, attempts=1), step("unknown_there"))


def test_what_failed_has_the_brokers_error() -> None:
    row = ended(State.FAILED, "runtime_error", "no such image", attempts=1)
    assert "because the broker answered 500: no such image (runtime_error)" in word(row, step("broker_500"))


def test_what_failed_in_the_hub_has_its_error() -> None:
    row = ended(State.FAILED, "plugin_fault", "plugin x broke the contract", attempts=1)
    assert "plugin x broke the contract (plugin_fault)" in word(row, step("plugin_fault"))


def test_poison_is_told_with_the_processes_that_died() -> None:
    row = ended(State.FAILED, "poison", "three processes died", attempts=3, broker_crashes=3)
    assert "as poison: the broker's process died 3 times" in word(row, step("poison"))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("deadline", "its deadline, 2026-11-25 09:30:06 UTC, passed before anybody sent it"),
        ("window", "nobody took it for as long as its caller waited"),
        ("nobody_home", "nobody held its broker"),
    ],
)
def test_what_expired_says_because_of_what_and_that_it_did_not_happen(reason: str, words: str) -> None:
    row = ended(State.EXPIRED, "broker_timeout", "nobody took it", deadline_at=ago(6))
    found = word(row, step(reason, from_state=State.PENDING))
    assert words in found
    assert "nobody took it (broker_timeout)" in found
    assert "It did not happen." in found


def test_what_was_cancelled_says_by_whom() -> None:
    row = ended(State.CANCELLED, "cancelled", "it was cancelled before anybody took it")
    assert "by user:u: it was cancelled" in word(row, step("cancelled", detail={"by": "user:u"}))


def test_what_was_superseded_says_by_what() -> None:
    row = ended(State.CANCELLED, "cancelled", "a later stop came", op=Op.START)
    assert "superseded by stop i-9" in word(row, step("superseded", detail={"by": "i-9", "op": "stop"}))


def test_what_was_held_for_a_deleted_agent_says_so() -> None:
    row = ended(State.CANCELLED, "cancelled", "its agent was deleted", op=Op.MESSAGE, lane=Lane.MESSAGE)
    assert "its agent was deleted before it was delivered" in word(row, step("agent_deleted"))


@pytest.mark.parametrize(
    ("attempts", "came_from", "why"),
    [
        (2, State.IN_PROGRESS, "the 2nd attempt was in the broker's hands, and no answer came"),
        (1, State.PENDING, "it had been taken once before"),
        (0, State.PENDING, "the database was away"),
    ],
)
def test_what_nobody_can_know_says_why(attempts: int, came_from: State, why: str) -> None:
    row = ended(State.EXPIRED, "outcome_unknown", "look at the agent", attempts=attempts)
    found = word(row, step("deadline", from_state=came_from))
    assert why in found
    assert "It may or may not have happened" in found
