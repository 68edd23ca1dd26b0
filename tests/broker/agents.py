"""Requests about one agent, and the programs that tests run as agents."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

from tests.broker.fakehub import PROJECT, Answer, FakeHub, Frame
from tests.harness.processes import eventually

Program = str | list[str]
"""The text of a Python program, or a command."""
Body = dict[str, Any] | None
ECHO = """
import os, signal, sys
print("begun", os.environ["POINTSMAN_RUN_ID"], flush=True)
for line in sys.stdin:
    print("read", line, end="", flush=True)
"""
"""Says what it reads."""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
while True:
    time.sleep(0.05)
"""
"""Does not end on TERM."""


SHOW = """
import json, os
print('ENV', json.dumps(dict(os.environ)))
print('CWD', os.getcwd(), flush=True)
input()
"""
"""Says what it was started with."""
REPORTS = """
import sys
print('::status {"activity": "thinking", "detail": {"toolName": "größe", "message": "one"}}', flush=True)
print('::status not json', flush=True)
print('::status [1]', flush=True)
for line in sys.stdin:
    print('::status {"activity": "waiting_for_input", "detail": "two"}', flush=True)
"""
"""Reports its status, and again for each line that it reads."""


def python(program: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", program]


def configuration(program: Program, config: Body = None) -> dict[str, Any]:
    command = python(program) if isinstance(program, str) else program
    return {"command": command, "stopGrace": "5s", **(config or {})}


class Agent:
    """One agent of the hub's, by the requests that are made about it."""

    def __init__(self, hub: FakeHub, slug: str | None = None, project: str = PROJECT) -> None:
        self.hub = hub
        self.id = str(uuid.uuid4())
        self.slug = slug or f"agent-{self.id[:8]}"
        self.project = project
        self.runs: list[str] = []

    def new_run(self) -> str:
        self.runs.append(str(uuid.uuid4()))
        return self.runs[-1]

    def body(self, config: dict[str, Any], **more: Any) -> dict[str, Any]:
        """What create, start and restart have in common."""
        return {
            "projectId": self.project,
            "groveId": self.project,
            "runId": self.new_run(),
            "inlineConfig": config,
            "resolvedEnv": {"SCION_AGENT_ID": self.id},
            "resolvedSecrets": [],
            "hubEndpoint": "http://hub.invalid",
            "agentToken": "token",
            **more,
        }

    def creation(self, config: dict[str, Any], **more: Any) -> dict[str, Any]:
        named = {"id": self.id, "slug": self.slug, "name": self.slug.title(), "config": {"env": []}}
        return {**self.body(config), **named, **more}

    async def create(self, program: Program = ECHO, *, body: Body = None, config: Body = None, **more: Any) -> Answer:
        sent = self.creation(configuration(program, config), **(body or {}))
        return await self.hub.ask("POST", "/api/v1/agents", sent, agent=self.id, **more)

    async def start(
        self, program: Program = ECHO, op: str = "start", *, body: Body = None, config: Body = None, **more: Any
    ) -> Answer:
        return await self.post(op, self.body(configuration(program, config), **(body or {})), **more)

    async def post(self, action: str, body: dict[str, Any] | None = None, **more: Any) -> Answer:
        path = f"/api/v1/agents/{self.slug}/{action}"
        return await self.hub.ask("POST", path, body or {"projectId": self.project}, agent=self.id, **more)

    def asking(self, action: str, body: Body = None, **more: Any) -> Frame:
        """The frame of a request, for a test that does not wait for its answer at once."""
        path = f"/api/v1/agents/{self.slug}/{action}"
        return self.hub.frame("POST", path, {} if body is None else body, agent=self.id, **more)

    async def message(self, text: str, **more: Any) -> Answer:
        return await self.post("message", {"message": text}, **more)

    async def delete(self, **more: Any) -> Answer:
        return await self.hub.ask("DELETE", f"/api/v1/agents/{self.slug}", agent=self.id, **more)

    async def log(self, tail: int = 1000) -> str:
        query = {"tail": str(tail)}
        answer = await self.hub.ask("GET", f"/api/v1/agents/{self.slug}/logs", agent=self.id, query=query)
        assert answer.status == 200, answer
        return answer.body.decode()

    async def logged(self, text: str, times: int = 1) -> str:
        """The log, once it holds the text so many times."""

        async def there() -> str | None:
            log = await self.log()
            return log if log.count(text) >= times else None

        return await eventually(there, f"{text!r} in the log of {self.slug}")

    async def status(self, **wanted: Any) -> dict[str, Any]:
        return await self.hub.event("agent_status", agentId=self.id, **wanted)


async def shown(agent: Agent) -> dict[str, str]:
    log = await agent.logged("CWD")
    [line] = [one for one in log.splitlines() if one.startswith("ENV ")]
    found: dict[str, str] = json.loads(line.removeprefix("ENV "))
    return found


def processes_with(text: str) -> list[int]:
    """Pids of live processes whose environment or command line holds the text."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in told:
                found.append(int(process.name))
    return found
