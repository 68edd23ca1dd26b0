"""What a plugin resolves for an agent is looked at before it is sent anywhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernel.agent import Agent, AgentId, Phase
from kernel.attempt import Attempts
from kernel.clock import SYSTEM, Instant
from kernel.environment import Environment, Secret
from kernel.hooks import Answer
from kernel.intent import Intent, IntentId, Lane, Op, State
from kernel.lanes import Work
from kernel.link import Exchange
from kernel.observe import Observer
from kernel.project import Project
from kernel.storage import AgentView
from kernel.tunnel import Outcome

pytestmark = pytest.mark.anyio


class Silent:
    def tell(self, *arguments: object) -> None:
        """Nobody listens."""


class Resolves:
    """The compiled hooks, of which one plugin gives this."""

    def __init__(self, answer: Any) -> None:
        self.resolve_environment = self.around_dispatch = self
        self._answer = answer

    async def gather(self, *_: object) -> list[Answer[Any]]:
        return [Answer(self._answer, "theirs")]


class Breaks(Resolves):
    """Something in this hub goes wrong that nobody foresaw."""

    async def call(self, *_: object) -> Outcome:
        raise RuntimeError("a slip of ours")


async def made(answer: Any, *, hooks: Any = None, sent: bool = False) -> Outcome:
    agent = Agent(id=AgentId("a"), slug="a", name="a", project_id="p", phase=Phase.CREATED)
    view = AgentView(agent=agent, project=Project(id="p", name="p", slug="p"), broker=None, waiting=frozenset())
    intent = Intent(
        id=IntentId("i"), op=Op.START, lane=Lane.CONTROL, state=State.IN_PROGRESS, broker_id="b", agent_id=agent.id,
        agent_slug="a", project_id="p", attempts=1, deadline_at=Instant(0), route="local", principal="me",
        request_id="r", node_id="n", created_at=Instant(0),
    )  # fmt: skip
    link: Any = SimpleNamespace(open=True, paused=False)
    nobody: Any = None
    attempts = Attempts(
        hooks=hooks or Resolves(answer), agents=nobody, keyring=nobody, clock=SYSTEM, mint=lambda *_: "",
        address=lambda: "", observer=Observer(Silent(), Silent(), Silent()), late_grace=1.0, message_attempts=3,
    )  # fmt: skip
    work = Work(intent=intent, link=link, until=SYSTEM.monotonic() + 30, view=view)
    if sent:
        work.exchange = Exchange(intent.id, 0.0)
    return await attempts.make(work)


@pytest.mark.parametrize(
    "answer",
    [
        {"HOME": "/home"},
        Environment(values={"HOME": Path("/home")}),  # type: ignore[dict-item]
        Environment(values={"PORT": 8080}),  # type: ignore[dict-item]
        Environment(values={"NAME": "caf\udce9"}),
        Environment(secrets=(Secret(name="KEY", value=None),)),  # type: ignore[arg-type]
    ],
    ids=["no environment", "a path", "a number", "no text that can be written", "a secret without value"],
)
async def test_what_cannot_be_sent_ends_the_intent_and_names_the_plugin(answer: Any) -> None:
    outcome = await made(answer)
    assert (outcome.kind, outcome.state, outcome.reason) == ("end", State.FAILED, "plugin_fault")
    assert outcome.error is not None
    assert "plugin theirs answered resolve_environment with" in outcome.error.message
    assert "8080" not in outcome.error.message


@pytest.mark.parametrize(("sent", "code"), [(False, "internal_error"), (True, "outcome_unknown")])
async def test_a_fault_of_the_hub_ends_its_dispatch_and_not_the_hub(sent: bool, code: str) -> None:
    outcome = await made(None, hooks=Breaks(Environment()), sent=sent)
    assert (outcome.kind, outcome.state, outcome.reason) == ("end", State.FAILED, "internal_error")
    assert outcome.error is not None
    assert outcome.error.code == code
    assert "a slip" not in outcome.error.message
