"""What a report may change about an agent (design/data.md, Phases)."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from kernel.agent import EDGES, RESTING, Agent, AgentId, Phase, Report, applied

AGENT = Agent(id=AgentId("a"), slug="a", name="a", project_id="p", phase=Phase.RUNNING, run_id="run-2")


def agent(**fields: Any) -> Agent:
    return Agent(**{**{name: getattr(AGENT, name) for name in AGENT.__struct_fields__}, **fields})


def report(**fields: Any) -> Report:
    return Report(**{"agent_id": AGENT.id, "source": "agent", "run_id": "run-2", **fields})


def test_a_report_of_an_ended_run_changes_nothing() -> None:
    assert applied(agent(), report(run_id="run-1", phase=Phase.STOPPED)) is None


def test_a_report_without_a_run_changes_nothing_for_a_broker_that_names_runs() -> None:
    assert applied(agent(), report(run_id=None, phase=Phase.STOPPED)) is None


@pytest.mark.parametrize(("old", "new"), list(product(sorted(RESTING), Phase)))
def test_no_report_leaves_a_resting_phase(old: Phase, new: Phase) -> None:
    outcome = applied(agent(phase=old), report(phase=new))
    assert outcome is None or outcome.phase is old


def test_a_report_never_goes_back_from_running() -> None:
    for phase in (Phase.CREATED, Phase.PROVISIONING, Phase.CLONING, Phase.STARTING):
        assert applied(agent(), report(phase=phase)) is None


@pytest.mark.parametrize(("old", "new"), list(product(Phase, Phase)))
def test_a_report_follows_the_edges(old: Phase, new: Phase) -> None:
    outcome = applied(agent(phase=old), report(phase=new))
    if outcome and outcome.phase is not old:
        assert new in EDGES[old]


def test_a_stock_brokers_report_counts_while_the_agent_does_not_rest() -> None:
    said = report(run_id=None, tells_runs=False, source="broker", phase=Phase.STOPPED)
    assert applied(agent(), said) is not None
    assert applied(agent(phase=Phase.SUSPENDED), said) is None


def test_a_stock_heartbeat_may_revive_a_stopped_agent_when_all_is_quiet() -> None:
    beat = {"source": "heartbeat", "run_id": None, "tells_runs": False, "phase": Phase.RUNNING}
    outcome = applied(agent(phase=Phase.STOPPED), report(**beat))
    assert outcome is not None
    assert outcome.phase is Phase.RUNNING
    assert applied(agent(phase=Phase.STOPPED), report(**beat, quiet=False)) is None
    assert applied(agent(phase=Phase.ERROR), report(**beat)) is None


def test_an_activity_is_told_only_while_running() -> None:
    outcome = applied(agent(), report(activity="thinking"))
    assert outcome is not None
    assert outcome.activity == "thinking"
    stopped = applied(agent(activity="thinking"), report(phase=Phase.STOPPED))
    assert stopped is not None
    assert stopped.activity is None


def test_a_crash_outlives_the_run() -> None:
    outcome = applied(agent(), report(phase=Phase.ERROR, activity="crashed"))
    assert outcome is not None
    assert (outcome.phase, outcome.activity) == (Phase.ERROR, "crashed")


def test_an_unknown_activity_is_ignored() -> None:
    assert applied(agent(), report(activity="dancing")) is None


def test_details_are_merged() -> None:
    outcome = applied(agent(detail={"toolName": "git"}), report(detail={"message": "cloning"}))
    assert outcome is not None
    assert outcome.detail == {"toolName": "git", "message": "cloning"}


def test_a_report_that_says_nothing_new_changes_nothing() -> None:
    assert applied(agent(activity="thinking"), report(phase=Phase.RUNNING, activity="thinking")) is None
