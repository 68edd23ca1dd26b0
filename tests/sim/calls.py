"""Callers: what they asked of which hub, and what they were told."""

from __future__ import annotations

import random
from typing import Any

import anyio
import msgspec

from kernel.agent import Agent
from kernel.call import Call
from kernel.clock import SYSTEM
from kernel.errors import PointsmanError
from kernel.intent import IntentId, Op, lane_of
from kernel.message import Message
from kernel.storage import IdempotencyKey
from tests.sim.hubs import Hub, World

OPS = (Op.STOP, Op.START, Op.RESTART, Op.SUSPEND, Op.MESSAGE, Op.MESSAGE)


class Asked(msgspec.Struct, kw_only=True):
    """One call. `told`: done, accepted, or the error's code; empty as long as nobody answered."""

    op: Op
    agent_id: str
    at: float
    intent_id: str | None = None
    told: str = ""
    told_at: float = 0.0

    @property
    def lane(self) -> tuple[str, str]:
        return self.agent_id, lane_of(self.op)

    @property
    def acknowledged(self) -> bool:
        """With a 2xx."""
        return self.told in ("done", "accepted")


class Caller:
    """Calls one hub after another, mostly without waiting for what came of the former call."""

    def __init__(self, world: World, agents: list[Agent], seed: int, asked: list[Asked]) -> None:
        self._world = world
        self._agents = agents
        self._chance = random.Random(seed)
        self._asked = asked

    async def run(self) -> None:
        chance = self._chance
        while not self._world.calm:
            await anyio.sleep(chance.random() ** 2 * 0.3)
            hubs = [hub for hub in self._world.hubs if hub.takes]
            if hubs:
                agent = chance.choice(self._agents)
                here = [hub for hub in hubs if hub.parts.story.links.of(agent.runtime_broker_id or "")]
                hub = chance.choice(here if here and chance.random() < 0.5 else hubs)
                asked = Asked(op=chance.choice(OPS), agent_id=agent.id, at=SYSTEM.monotonic())
                self._asked.append(asked)
                hub.begin(self._ask, hub, agent, asked)

    async def _ask(self, hub: Hub, agent: Agent, asked: Asked) -> None:
        try:
            view = await hub.storage.find_agent(agent.id)
            call = Call(op=asked.op, view=view, principal="user:sim", request_id="r", **self._wishes(asked.op, agent))
            answer = await hub.parts.story.dispatcher.call(call)
            asked.intent_id, asked.told = answer.intent.id, "done" if answer.ended else "accepted"
        except PointsmanError as error:
            asked.intent_id, asked.told = error.dispatch_id, error.as_failure().code
        asked.told_at = SYSTEM.monotonic()
        if asked.told == "accepted" and self._chance.random() < 0.2:
            await self._cancel(hub, asked)

    def _wishes(self, op: Op, agent: Agent) -> dict[str, Any]:
        chance = self._chance
        wishes: dict[str, Any] = {
            "wait": chance.choice([None, None, 0.0, 0.05, 0.3, 4.0]),
            "deliver": chance.choice([None, None, None, "hold", "now"]),
            "deadline_in": chance.choice([None, None, None, 0.3, 1.0, 3.0]),
        }
        if chance.random() < 0.15:
            wishes["key"] = IdempotencyKey(principal="user:sim", key=SYSTEM.uuid4(), request_hash="h")
        if op is Op.MESSAGE:
            to: dict[str, Any] = {"recipient": f"agent:{agent.slug}", "recipient_agent_id": agent.id}
            wishes["message"] = Message(id="", project_id=agent.project_id, sender="user:sim", msg="hello", **to)
            wishes["args"] = {"message": "hello"}
        return wishes

    async def _cancel(self, hub: Hub, asked: Asked) -> None:
        await anyio.sleep(self._chance.random() * 0.3)
        try:
            await hub.parts.story.dispatcher.cancel(IntentId(asked.intent_id or ""), "user:sim")
        except PointsmanError:
            return  # it was a wish
