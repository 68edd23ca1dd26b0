"""What each personality answers when no rule says otherwise: ours, and a stock broker of spring 2026."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.harness.inbox import Answer
from tests.harness.requests import Request

Body = dict[str, Any]


class Personality(Protocol):
    """How a broker answers when it does as it is asked."""

    def answer(self, request: Request) -> Answer: ...

    def agents_told(self) -> list[Body]:
        """Its agents, as a heartbeat lists them."""
        ...


def refused(status: int, code: str, message: str) -> Answer:
    return Answer(status=status, body={"error": {"code": code, "message": message}})


@dataclass
class Ours:
    """Answers as our broker does; `echo` carries the dispatch id, so that a result can be traced to its intent."""

    agents: dict[str, Body] = field(default_factory=dict)

    def answer(self, request: Request) -> Answer:
        make = getattr(self, f"_{request.op}", None)
        if make is None:
            return refused(404, "not_found", f"{request.asked.method} {request.asked.path}: no such route")
        answer: Answer = make(request)
        if isinstance(answer.body, dict):
            return Answer(status=answer.status, body={**answer.body, "echo": request.dispatch})
        return answer

    def agents_told(self) -> list[Body]:
        return list(self.agents.values())

    def _agent(self, request: Request, phase: str) -> Body:
        sent = request.json if isinstance(request.json, dict) else {}
        known = self.agents.get(str(request.agent), {})
        agent = {
            "id": sent.get("id") or known.get("id") or request.header("X-Agent-Id"),
            "slug": request.agent,
            "name": sent.get("name") or known.get("name"),
            "runId": sent.get("runId") or known.get("runId"),
            "phase": phase,
            "activity": "working" if phase == "running" else None,
            "image": "scripted",
            "runtime": "scripted",
        }
        self.agents[str(request.agent)] = agent
        return agent

    def _create(self, request: Request) -> Answer:
        phase = "created" if request.json.get("provisionOnly") else "running"
        return Answer(status=201, body={"agent": self._agent(request, phase), "created": True})

    def _finalize_env(self, request: Request) -> Answer:
        return Answer(status=201, body={"agent": self._agent(request, "running"), "created": True})

    def _start(self, request: Request) -> Answer:
        return Answer(status=200, body={"agent": self._agent(request, "running")})

    _restart = _start

    def _stop(self, request: Request) -> Answer:
        return Answer(status=200, body={"agent": self._agent(request, "stopped")})

    def _suspend(self, request: Request) -> Answer:
        return Answer(status=200, body={"agent": self._agent(request, "suspended")})

    def _delete(self, request: Request) -> Answer:
        self.agents.pop(str(request.agent), None)
        return Answer(status=204)

    def _message(self, request: Request) -> Answer:
        return Answer(status=200, body={"delivered": True})

    def _has_prompt(self, request: Request) -> Answer:
        return Answer(status=200, body={"hasPrompt": True})

    def _logs(self, request: Request) -> Answer:
        return Answer(status=200, body=f"log of {request.agent}\n")

    def _info(self, request: Request) -> Answer:
        return Answer(status=200, body={"version": "scripted"})

    def _list(self, request: Request) -> Answer:
        return Answer(status=200, body={"agents": self.agents_told(), "totalCount": len(self.agents)})

    def _show(self, request: Request) -> Answer:
        known = self.agents.get(str(request.agent))
        return Answer(status=200, body=known) if known else refused(404, "not_found", "no such agent")


@dataclass
class Stock(Ours):
    """Answers as a stock broker was seen to: bare, and forgiving about unknown agents."""

    def answer(self, request: Request) -> Answer:
        make = getattr(self, f"_{request.op}", None)
        if make is None or request.op in ("suspend", "info"):
            return Answer(status=404, body="404 page not found\n")
        answer: Answer = make(request)
        return answer

    def agents_told(self) -> list[Body]:
        return [
            {
                "slug": agent["slug"],
                "status": agent["phase"],
                "phase": agent["phase"],
                "containerStatus": "Up 2 seconds" if agent["phase"] == "running" else "Exited (0)",
            }
            for agent in self.agents.values()
        ]

    def _bare(self, agent: Body) -> Body:
        """The reply's id and slug may be empty, and it names no run."""
        return {"id": "", "slug": "", "name": agent["name"], "phase": agent["phase"], "image": agent["image"]}

    def _create(self, request: Request) -> Answer:
        """Slugs are not scoped by project here."""
        if str(request.agent) in self.agents:
            return refused(409, "already_exists", f"agent {request.agent} already exists")
        return Answer(status=201, body={"agent": self._bare(self._agent(request, "running")), "created": True})

    def _finalize_env(self, request: Request) -> Answer:
        """Goes by the agent's id; the slug is 404."""
        known = next((agent for agent in self.agents.values() if agent["id"] == request.agent), None)
        if known is None:
            return refused(404, "not_found", "no pending agent")
        return Answer(status=201, body={"agent": self._bare(known), "created": True})

    def _start(self, request: Request) -> Answer:
        return Answer(status=202, body={"agent": self._bare(self._agent(request, "running"))})

    _restart = _start

    def _stop(self, request: Request) -> Answer:
        if known := self.agents.get(str(request.agent)):
            known["phase"] = "stopped"
        return Answer(status=202, body={"status": "accepted"})

    def _message(self, request: Request) -> Answer:
        return Answer(status=200, body={"status": "ok"})
