"""What the compiled hooks cost: each kind with no, one and three plugins, beside a bare call and pluggy's own.

`on_transition` is what every transition pays. A plugin here is a method that counts; the bare call is that method.
Everything runs in this process; asynchronous kinds are awaited on a running loop, as in a hub.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pluggy

from bench.rig import report, script
from kernel import SYSTEM, Decision, IntentId, NodeId, Op, Principal, Resource, Transition, hookimpl
from kernel.hooks import Hooks, Implementation
from kernel.hookspecs import PROJECT, RULES, SPECIFICATIONS

VOICES = (0, 1, 3)
BLOCK = 1_000
"""Calls between two looks at the clock."""

TRANSITION = Transition(
    intent_id=IntentId(SYSTEM.uuid7()),
    op=Op.START,
    n=1,
    at=SYSTEM.now(),
    from_state="routed",
    to_state="pending",
    reason="recorded",
    node_id=NodeId(SYSTEM.uuid4()),
)
PRINCIPAL = Principal(kind="user", id="1", name="bench")
RESOURCE = Resource(kind="agent", id="1")
ALLOWED = Decision(allowed=True, reason="bench")


class Voice:
    """A plugin that does next to nothing, and abstains where it is asked."""

    def __init__(self) -> None:
        self.heard = 0

    @hookimpl
    def on_transition(self, transition: Transition) -> None:
        self.heard += 1

    @hookimpl
    def rank_route(self, request: object) -> None:
        self.heard += 1

    @hookimpl
    async def authorize(self, principal: Principal, action: str, resource: Resource) -> Decision | None:
        self.heard += 1
        return None

    @hookimpl
    async def around_dispatch(self, intent: object, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        self.heard += 1
        return await call_next(intent)


def hooks(voices: list[Voice], name: str) -> Hooks:
    """One hook of so many plugins, compiled as in a hub."""
    arguments = RULES[name].arguments
    return Hooks(
        Implementation(plugin=f"voice-{number}", hook=name, call=getattr(voice, name), arguments=arguments)
        for number, voice in enumerate(voices)
    )


def relay(voices: list[Voice]) -> Any:
    """The same plugins under pluggy's own calls."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(SPECIFICATIONS)
    for voice in voices:
        manager.register(voice)
    return manager.hook


async def nothing(_intent: object = None) -> object:
    return ALLOWED


class Stopwatch:
    """Nanoseconds of one call: the median of blocks, so that a block in which others ran does not count."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def of(self, call: Callable[[], object]) -> float:
        def block() -> None:
            for _ in range(BLOCK):
                call()

        times: list[float] = []
        until = time.perf_counter() + self._seconds
        while (before := time.perf_counter()) < until:
            block()
            times.append((time.perf_counter() - before) / BLOCK)
        return report.median(times) * 1e9

    async def of_async(self, call: Callable[[], Awaitable[object]]) -> float:
        times: list[float] = []
        until = time.perf_counter() + self._seconds
        while (before := time.perf_counter()) < until:
            for _ in range(BLOCK // 10):
                await call()
            times.append((time.perf_counter() - before) / (BLOCK // 10))
        return report.median(times) * 1e9


async def measure(chosen: argparse.Namespace, step: script.Step, _directory: Path) -> list[report.Table]:
    table = report.Table(
        "one call of a hook",
        *("hook", "plugins", "ns", "pluggy ns", "× bare call of one", "× pluggy"),
        note="bare call: one plugin's own method, called (or awaited) directly; pluggy awaits nothing",
    )
    watch = Stopwatch(chosen.seconds)
    for number in VOICES:
        step(f"{number} plugins")
        voices = [Voice() for _ in range(number)]
        one, theirs = Voice(), relay(voices)
        told = hooks(voices, "on_transition").on_transition
        _row(
            table,
            "on_transition (tell)",
            number,
            watch.of(lambda told=told: told.tell(TRANSITION)),  # type: ignore[misc]
            watch.of(lambda theirs=theirs: theirs.on_transition(transition=TRANSITION)),  # type: ignore[misc]
            watch.of(lambda one=one: one.on_transition(TRANSITION)),  # type: ignore[misc]
        )
        ranked = hooks(voices, "rank_route").rank_route
        _row(
            table,
            "rank_route (ask)",
            number,
            watch.of(lambda ranked=ranked: ranked.ask(TRANSITION)),  # type: ignore[misc]
            watch.of(lambda theirs=theirs: theirs.rank_route(request=TRANSITION)),  # type: ignore[misc]
            watch.of(lambda one=one: one.rank_route(TRANSITION)),  # type: ignore[misc]
        )
        await _awaited(table, number, watch, voices)
    return [table]


async def _awaited(table: report.Table, number: int, watch: Stopwatch, voices: list[Voice]) -> None:
    one = Voice()
    allowed = hooks(voices, "authorize").authorize
    asked = (PRINCIPAL, "agent.start", RESOURCE)
    ours = await watch.of_async(lambda: allowed.ask(*asked))
    _row(table, "authorize (ask, awaited)", number, ours, None, await watch.of_async(lambda: one.authorize(*asked)))
    wrapped = hooks(voices, "around_dispatch").around_dispatch
    intent: Any = TRANSITION
    ours = await watch.of_async(lambda: wrapped.call(intent, nothing))
    bare = await watch.of_async(lambda: one.around_dispatch(intent, nothing))
    _row(table, "around_dispatch (wrap, awaited)", number, ours, None, bare)


def _row(table: report.Table, name: str, number: int, ours: float, theirs: float | None, bare: float) -> None:
    against = "–" if theirs is None else ours / theirs
    table.add(name, number, ours, "–" if theirs is None else theirs, ours / bare, against)


if __name__ == "__main__":
    script.run(measure, script.arguments(__doc__, seconds=0.4).parse_args(), steps=len(VOICES))
