"""What the broker asks of a runtime, whatever it runs agents in."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import anyio
import msgspec

from broker.agent import Ended


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One start of one agent."""

    agent_id: str
    run_id: str
    config: dict[str, Any]
    environment: dict[str, str]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run that took effect."""

    run_id: str
    ended: Ended | None = None
    """None while it goes on."""
    status: dict[str, Any] = {}


Delivery = Literal["delivered", "busy", "closed", "ended", "withdrawn", "failed", "unknown", "silent"]
"""What became of a message. `busy`: the agent does not read. `closed`: it closed its input. `failed`: its message
command failed. `unknown`: nobody heard of it. `silent`: nobody knows yet, ask again. Only `delivered` and `failed` had
an effect."""


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    result: Delivery
    exit_code: int | None = None
    output: str = ""


class Executed(msgspec.Struct, frozen=True, kw_only=True):
    """What a side command printed and how it ended."""

    result: Literal["done", "cancelled", "lost"]
    """`lost`: the agent ended under it, and nobody saw its end."""
    exit_code: int = 0
    output: str = ""
    timed_out: bool = False
    truncated: bool = False


class Listener(Protocol):
    """Who is told what a run does. Neither may block."""

    def reported(self, agent_id: str, run_id: str, status: dict[str, Any]) -> None: ...

    def ended(self, agent_id: str, run_id: str, ended: Ended) -> None: ...


class Runtime(Protocol):
    """Runs agents, one run of each at a time. What it starts outlives the broker and is found again."""

    def faults(self, config: dict[str, Any]) -> dict[str, str]:
        """What is wrong with an agent's configuration: field → why."""
        ...

    def required(self, config: dict[str, Any]) -> list[str]:
        """Names of the environment that it says it needs."""
        ...

    async def start(self, launch: Launch) -> Run:
        """Raises: Refusal, when nothing was started."""
        ...

    async def stop(self, agent_id: str, asked: str) -> Ended | None:
        """Returns when nothing of it runs any more; None when nothing did."""
        ...

    def runs(self, agent_id: str) -> bool:
        """Whether a run of it goes on."""
        ...

    async def find(self, agent_id: str, run_id: str) -> Run | None:
        """Whether this run took effect, also when the broker that started it died; None: it never will.

        Raises: Refusal, when that cannot be told yet.
        """
        ...

    async def message(self, agent_id: str, message_id: str, line: str | None, cancelled: anyio.Event) -> Delivered:
        """Say something to it once. Without a line: what became of that message?"""
        ...

    async def exec(self, agent_id: str, command: list[str], timeout: float, cancelled: anyio.Event) -> Executed:
        """Run a command beside it. Raises: Refusal."""
        ...

    async def log(self, agent_id: str, lines: int, most: int) -> bytes:
        """The last lines that it printed, at most so many bytes of them."""
        ...

    async def remove(self, agent_id: str, *, files: bool) -> None:
        """Forget it; with `files` also its own working directory."""
        ...
