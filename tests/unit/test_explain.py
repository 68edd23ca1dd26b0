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
from kernel.storage import LaneView

SECOND = 1_000_000
NOW = Instant(1_795_599_012 * SECOND)
SETTINGS = Settings()


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


def told(
    row: Intent,
    held: Broker | None = None,
    *,
    phase: Phase = Phase.RUNNING,
    behind: Intent | None = None,
    owner_alive: bool = True,
    deleted: bool = False,
) -> Explanation:
    view = LaneView(
        intent=row,
        agent=agent(phase),
        broker=None if deleted else held or broker(),
        behind=behind,
        owner_alive=owner_alive,
        history=(),
    )
    return explained(view, SETTINGS, NOW)


def test_without_a_connection_it_waits_for_the_broker() -> None:
    away = broker(online=False, disconnected_at=ago(90))
    found = told(intent(), away)
    assert found.code == "waiting_broker"
    assert "laptop is not connected since 2026-11-25" in found.sentence
    assert "90 s ago" in found.sentence
    assert "in 15 min" in found.sentence
    assert found.next_attempt_at is None


def test_a_broker_that_never_came_is_told_as_such() -> None:
    assert "never connected" in told(intent(), broker(online=False, connection_epoch=0)).sentence


def test_a_deleted_broker_is_waited_for_in_vain() -> None:
    assert told(intent(), deleted=True).code == "waiting_broker"


def test_a_message_waits_until_its_agent_runs() -> None:
    found = told(intent(op=Op.MESSAGE, lane=Lane.MESSAGE), phase=Phase.SUSPENDED)
    assert found.code == "waiting_agent"
    assert "worker is suspended" in found.sentence


def test_an_operation_does_not_wait_for_its_agent() -> None:
    assert told(intent(), phase=Phase.STOPPED).code == "waiting_owner"


def test_it_waits_for_what_came_before_it_in_its_lane() -> None:
    before = in_hand(id=IntentId("i-0"), op=Op.START)
    found = told(intent(), behind=before)
    assert found.code == "waiting_lane"
    assert "start i-0" in found.sentence
    assert "in progress" in found.sentence


def test_an_answer_that_said_later_is_told_with_the_next_attempt() -> None:
    error = Failure(code="runtime_error", message="the broker answered 503", status=502)
    found = told(intent(attempts=2, next_attempt_at=ahead(4), error=error))
    assert found.code == "waiting_retry"
    assert found.next_attempt_at == ahead(4)
    assert "the broker answered 503" in found.sentence
    assert "in 4 s" in found.sentence


def test_an_attempt_that_is_due_is_no_retry() -> None:
    assert told(intent(attempts=2, next_attempt_at=ago(1))).code == "waiting_owner"


def test_a_paused_broker_comes_before_every_other_reason() -> None:
    found = told(intent(), broker(paused=True, online=False), behind=in_hand())
    assert found.code == "paused"
    assert "resumed" in found.sentence


def test_what_nothing_holds_up_is_taken_at_the_next_poll() -> None:
    found = told(intent())
    assert found.code == "waiting_owner"
    assert found.next_attempt_at == ahead(SETTINGS.bus.poll_healthy)


def test_a_dead_owner_is_told_with_the_next_sweep() -> None:
    found = told(in_hand(), owner_alive=False)
    assert found.code == "waiting_owner"
    assert "node-1" in found.sentence
    assert found.next_attempt_at == ahead(SETTINGS.sweep.stuck)


def test_an_epoch_that_moved_is_a_dead_owner() -> None:
    found = told(in_hand(sent_at=ago(1)), broker(connection_epoch=8))
    assert found.code == "waiting_owner"
    assert "driven again" in found.sentence


def test_what_was_claimed_waits_in_its_owners_lane() -> None:
    assert told(in_hand(), behind=in_hand(id=IntentId("i-0"))).code == "waiting_lane"


def test_what_was_claimed_and_is_first_is_about_to_be_sent() -> None:
    found = told(in_hand())
    assert found.code == "waiting_owner"
    assert "about to send" in found.sentence


def test_what_was_sent_waits_for_the_answer() -> None:
    found = told(in_hand(sent_at=ago(3)))
    assert found.code == "sent"
    assert "3 s ago" in found.sentence


def test_what_the_broker_took_is_at_work() -> None:
    assert told(in_hand(sent_at=ago(3), accepted_at=ago(2))).code == "accepted"


@pytest.mark.parametrize("state", [State.DONE, State.FAILED, State.EXPIRED, State.CANCELLED])
def test_an_end_is_told_with_its_reason(state: State) -> None:
    error = None if state is State.DONE else Failure(code="broker_timeout", message="nobody took it", status=504)
    found = told(intent(state=state, ended_at=ago(5), error=error, attempts=1))
    assert found.code == "ended"
    assert "5 s ago" in found.sentence
    assert state.value in found.sentence.lower()
    if error:
        assert "nobody took it (broker_timeout)" in found.sentence
