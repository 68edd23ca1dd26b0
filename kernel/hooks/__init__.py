"""Compiled hooks: pluggy collects and orders, the kernel calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from kernel.clock import SYSTEM
from kernel.config.settings import BreakerSettings
from kernel.environment import Environment
from kernel.finding import Finding
from kernel.hooks.breaker import Breaker, Stat, Voice
from kernel.hooks.chains import Answer, Around, Broadcast, Chain, CollectAsync, CollectSync, FirstAsync, FirstSync
from kernel.hookspecs import RULES, Kind
from kernel.route import RouteAdvice
from kernel.session import Decision, Principal
from kernel.storage import SchemaState, Storage

__all__ = ["Answer", "Hooks", "Implementation", "Stat"]


class Implementation(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the loader found fit for a hook."""

    plugin: str
    hook: str
    call: Callable[..., Any]
    arguments: tuple[str, ...]
    """Those of the hook that it takes, in its own order."""


_CHAINS: dict[tuple[Kind, bool], type[Chain]] = {
    (Kind.FIRST, False): FirstSync,
    (Kind.FIRST, True): FirstAsync,
    (Kind.COLLECT, False): CollectSync,
    (Kind.COLLECT, True): CollectAsync,
    (Kind.AROUND, True): Around,
    (Kind.BROADCAST, False): Broadcast,
}


class Hooks:
    """All chains of a hub, by the name of their hook."""

    open_storage: FirstAsync[Storage]
    check_storage: FirstAsync[SchemaState]
    diagnose: CollectAsync[list[Finding]]
    on_start: CollectAsync[None]
    offer_token: FirstSync[str]
    authenticate: FirstAsync[Principal]
    authorize: FirstAsync[Decision]
    rank_route: FirstSync[RouteAdvice]
    rank_brokers: FirstSync[tuple[Any, ...]]
    resolve_environment: CollectAsync[Environment]
    around_dispatch: Around
    on_transition: Broadcast
    on_stage: Broadcast
    on_request: Broadcast
    collect_metrics: CollectSync[str]
    on_stop: CollectAsync[None]

    def __init__(
        self,
        implementations: Iterable[Implementation] = (),
        settings: BreakerSettings | None = None,
        monotonic: Callable[[], float] = SYSTEM.monotonic,
    ) -> None:
        self.breaker = Breaker(settings or BreakerSettings(), monotonic)
        self.breaker.tripped = self._switch_off
        self._voices = [_voice(implementation) for implementation in implementations]
        for rule in RULES.values():
            setattr(self, rule.name, _CHAINS[rule.kind, rule.is_async](rule, self.breaker, monotonic))
        self._compile()

    def chains(self) -> Iterator[Chain]:
        return (getattr(self, name) for name in RULES)

    def stats(self) -> list[Stat]:
        """One row for each hook of each plugin, in the order of the plugins."""
        return [
            Stat(
                plugin=voice.plugin,
                hook=voice.hook,
                calls=voice.calls,
                seconds=voice.seconds,
                faults=voice.faults,
                last_fault=voice.last_fault,
                switched_off=voice.plugin in self.breaker.off,
            )
            for voice in self._voices
        ]

    def _switch_off(self, plugin: str) -> None:
        self._compile()

    def _compile(self) -> None:
        """Who is switched off keeps only what the work cannot go on without, and is still told of the end."""
        off = self.breaker.off
        for chain in self.chains():
            kept = chain.rule.needed or chain.rule.name == "on_stop"
            voices = (voice for voice in self._voices if voice.hook == chain.rule.name)
            chain.compile(voice for voice in voices if kept or voice.plugin not in off)


def _voice(implementation: Implementation) -> Voice:
    rule = RULES[implementation.hook]
    call = _adapted(implementation.call, implementation.arguments, rule.arguments)
    return Voice(implementation.plugin, rule.name, call, needed=rule.needed)


def _adapted(function: Callable[..., Any], taken: tuple[str, ...], given: tuple[str, ...]) -> Callable[..., Any]:
    """`function` called with all that the hook gives, passing on only what it takes (pluggy's rule)."""
    if taken == given:
        return function
    places = tuple(given.index(name) for name in taken)
    match places:
        case ():
            return lambda *_: function()
        case (only,):
            return lambda *arguments: function(arguments[only])
    return lambda *arguments: function(*[arguments[place] for place in places])
