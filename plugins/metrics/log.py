"""One line of log for each step of a dispatch."""

from __future__ import annotations

import logging
from typing import Literal

import msgspec

from kernel import Transition, hookimpl

log = logging.getLogger("pointsman.transitions")


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    level: Literal["debug", "info"] = "info"
    """`serve` shows what is `info`; `debug` leaves a terminal to what a person has to know."""


class Plugin:
    api = 1
    Config = LogConfig

    def __init__(self, config: LogConfig) -> None:
        self._level = logging.DEBUG if config.level == "debug" else logging.INFO

    @hookimpl
    def on_transition(self, transition: Transition) -> None:
        if log.isEnabledFor(self._level):
            log.log(self._level, "%s", line(transition))


def line(transition: Transition) -> str:
    """`key=value`, the same keys in the same order, what is not known left out."""
    facts = {
        "intent": transition.intent_id,
        "op": transition.op,
        "n": transition.n,
        "from": transition.from_state,
        "to": transition.to_state,
        "reason": transition.reason,
        "seconds": f"{transition.seconds:.6f}",
        "node": transition.node_id,
        "epoch": transition.epoch,
        "attempt": transition.attempt,
    }
    return "transition " + " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
