"""What a test wants the scripted broker to do with a request: rules in order, and gates that hold answers back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import anyio

Shape = Literal["good", "not_json", "binary", "oversize", "truncated", "no_status", "text_status", "bad_base64"]
"""How the answer's frame looks; all but `good` are faults that a hub must survive."""


@dataclass(kw_only=True)
class Rule:
    """Says how matching requests are answered. What is None is as the personality does it."""

    op: str | None = None
    agent: str | None = None
    dispatch: str | None = None
    times: int | None = None
    """How many requests it serves before it is spent; None is all."""
    status: int | None = None
    body: Any = None
    """JSON value, or a text that is sent as it stands."""
    merge: dict[str, Any] = field(default_factory=dict)
    """Replaces top-level members of the personality's own body."""
    delay: float = 0.0
    gate: str | None = None
    """The answer waits until this gate is released."""
    answer: Literal["once", "twice", "none"] = "once"
    on: Literal["asked", "newest"] = "asked"
    """Which socket the answer takes: the one that asked, or the newest that is open when it is ready."""
    accepted: bool = True
    effect: Literal["before", "after", "none"] | None = None
    """When the operation takes effect, seen from delay and gate; None: before, if the answer will be 2xx or 3xx."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Frames `{event, payload}` sent before the answer; `dispatchId` of the payload is filled in if absent."""
    shape: Shape = "good"

    def serves(self, op: str, agent: str | None, dispatch: str | None) -> bool:
        if self.times == 0:
            return False
        asked = ((self.op, op), (self.agent, agent), (self.dispatch, dispatch))
        return all(wanted is None or wanted == found for wanted, found in asked)


class Script:
    """The rules of one broker: the first that matches and is not spent serves the request."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self._gates: dict[str, anyio.Event] = {}

    def add(self, wanted: dict[str, Any]) -> None:
        known = {f.name for f in fields(Rule)}
        if strange := wanted.keys() - known:
            raise ValueError(f"a rule has no {sorted(strange)}; it has {sorted(known)}")
        self.rules.append(Rule(**wanted))

    def take(self, op: str, agent: str | None, dispatch: str | None) -> Rule:
        for rule in self.rules:
            if rule.serves(op, agent, dispatch):
                if rule.times is not None:
                    rule.times -= 1
                return rule
        return Rule()

    def gate(self, name: str) -> anyio.Event:
        return self._gates.setdefault(name, anyio.Event())

    def release(self, name: str) -> None:
        """Lets go what waits at the gate, and everything that comes to it later."""
        self.gate(name).set()
