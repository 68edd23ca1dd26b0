"""The few operations that every call goes through, on connections of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from kernel import (
    Agent,
    AgentView,
    ClaimRequest,
    Claims,
    End,
    Intent,
    IntentId,
    NewIntent,
    Recorded,
    Recording,
    Settled,
)
from plugins.storage.ledger.homes import HOMES, home_of
from plugins.storage.postgres import claiming, finding, recording, settling
from plugins.storage.postgres.batches import Batches, Wire
from plugins.storage.postgres.connecting import Connection

Connect = Callable[[str], Awaitable[Connection]]
"""Opens a connection for a role."""


ROLES = ("writer", "owner", "ender", "reader")
"""Calls are recorded, claimed, ended and read beside each other: a claim that waited for ends cost a fifth of the calls
at 64 in flight (bench/cross_hub.py)."""


class Hot:
    """What answers None is a case for the ledger's function."""

    def __init__(self, connect: Connect, deadline: float, lives: dict[str, int]) -> None:
        """`lives`: microseconds, by name, that nodes and sessions live without a sign (see `PostgresTx`)."""
        writer, owner, ender, reader = (Wire(partial(connect, role), deadline) for role in ROLES)
        self._wires = (writer, owner, ender, reader)
        self._records = {home.lane: Batches(writer, recording.record, again=True) for home in HOMES}
        self._taken = 0
        """Claims that took something."""
        self._claims = Batches(owner, claiming.claim, again=False, most=1)
        self._claims_told = [
            Batches(owner, partial(claiming.claim_told, home=home), again=False, most=1) for home in HOMES
        ]
        """By lane, that of the last signal first."""
        self._ends = {home.lane: Batches(ender, settling.end, again=True) for home in HOMES}
        self._stores = {home.lane: Batches(ender, settling.store, again=True) for home in HOMES}
        self._intents = Batches(reader, finding.intents, again=True)
        self._views = Batches(reader, partial(finding.views, lives=lives), again=True)

    @property
    def breaks(self) -> int:
        """How often one of the connections broke."""
        return sum(wire.breaks for wire in self._wires)

    @property
    def committed(self) -> int:
        """What was written, since the start."""
        written: tuple[Batches[Any, Any], ...] = (*self._records.values(), *self._ends.values(), *self._stores.values())
        return self._taken + sum(batches.answered for batches in written)

    @property
    def last_batch(self) -> float:
        return max(batches.last for batches in self._records.values())

    async def record(self, one: Recording) -> Recorded | None:
        if not recording.simple(one):
            return None
        return await self._records[home_of(one.intents[0].op).lane].ask(one)

    async def claim(self, request: ClaimRequest, otherwise: Callable[[ClaimRequest], Awaitable[Claims]]) -> Claims:
        """`otherwise`: the ledger's function, for what waits for others."""
        if request.ids is None or len(request.ids) > request.limit:
            return await self._claimed(self._claims, request, otherwise)
        likely, other = self._claims_told
        claims = await self._claimed(likely, request, otherwise)
        if claims.stale or len(claims.intents) >= len(request.ids):
            return claims
        left = msgspec.structs.replace(request, limit=request.limit - len(claims.intents))
        more = await self._claimed(other, left, otherwise)
        if more.intents and not claims.intents:
            self._claims_told = [other, likely]
        return claiming.joined(claims, more)

    async def _claimed(
        self,
        batches: Batches[ClaimRequest, Claims],
        request: ClaimRequest,
        otherwise: Callable[[ClaimRequest], Awaitable[Claims]],
    ) -> Claims:
        claims = await batches.ask(request)
        if claims is None:
            return await otherwise(request)
        self._taken += bool(claims.intents)
        return claims

    async def end(self, end: End) -> Settled | None:
        return await self._ends[home_of(end.op).lane].ask(end) if settling.plain(end) else None

    async def store(self, new: NewIntent, end: End) -> Settled | None:
        """A LOCAL call and its end."""
        if new.sealed or not settling.plain(end):
            return None
        return await self._stores[home_of(new.op).lane].ask((new, end))

    async def intents(self, ids: Sequence[IntentId]) -> list[tuple[Intent, Agent | None]]:
        return await self._intents.ask(ids) or []

    async def view(self, agent_id: str) -> AgentView | None:
        return await self._views.ask(agent_id)

    def close(self) -> None:
        for wire in self._wires:
            wire.close()
