"""The storage as a hub sees it: late, away, or with answers that are lost although it was done."""

from __future__ import annotations

import inspect
import random
from typing import Any

import anyio
import msgspec
import sqlalchemy as sa

from kernel.clock import SYSTEM
from kernel.errors import PointsmanError, StorageUnavailable
from kernel.node import Node
from kernel.storage import Changed

JOIN = sa.text(
    "INSERT INTO hub_nodes (id, started_at, beat_at, version, draining) VALUES (:id, :now, :now, 'sim', :draining)"
    " ON CONFLICT (id) DO UPDATE SET lost_at = NULL, beat_at = :now"
)
"""A file knows one hub, and whoever joins it calls all others lost: here several share it."""
UPKEEP = ("beat", "renew", "era")
"""Fewer faults than elsewhere: else nobody ever lives long enough to judge."""


class Odds(msgspec.Struct, frozen=True, kw_only=True):
    """How likely what is, for each call. Seconds are cubed chances: mostly short, seldom long."""

    slow: float = 0.3
    late: float = 0.1
    """It is done, and its answer comes later."""
    held: float = 0.01
    """The same, for so long that others may judge meanwhile."""
    away: float = 0.01
    """Nothing is done."""
    lost: float = 0.02
    """It is done, and its answer is lost."""
    signal_lost: float = 0.1


class Faulty:
    """Every operation of the contract, with faults, as long as it is not `calm`."""

    def __init__(self, real: Any, odds: Odds, chance: random.Random) -> None:
        self._real = real
        self._odds = odds
        self._chance = chance
        self.calm = False
        self.breaks = 0

    async def join_node(self, node: Node) -> Changed:
        await self._real.sql.run(JOIN, {"id": node.id, "now": SYSTEM.now(), "draining": node.draining})
        return Changed()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not inspect.iscoroutinefunction(real):
            return real

        async def faulty(*arguments: Any, **named: Any) -> Any:
            if self.calm:
                return await real(*arguments, **named)
            return await self._call(name, real, arguments, named)

        self.__dict__[name] = faulty
        return faulty

    async def _call(self, name: str, real: Any, arguments: Any, named: Any) -> Any:
        odds, chance = self._odds, self._chance
        draw = chance.random() * (5.0 if name in UPKEEP else 1.0)
        if chance.random() < odds.slow:
            await anyio.sleep(chance.random() ** 3 * 0.05)
        if draw < odds.away:
            raise self._broke()
        try:
            answer = await real(*arguments, **named)
        except PointsmanError:
            if odds.away <= draw < odds.away + odds.lost:
                raise self._broke() from None
            raise
        if odds.away <= draw < odds.away + odds.lost:
            await anyio.sleep(chance.random() * 0.05)
            raise self._broke()
        if chance.random() < odds.held:
            await anyio.sleep(chance.random() * 2.0)
        elif chance.random() < odds.late:
            await anyio.sleep(chance.random() ** 2 * 0.1)
        return answer

    def _broke(self) -> StorageUnavailable:
        """Not every answer that does not come in time is a broken connection."""
        self.breaks += self._chance.random() < 0.2
        return StorageUnavailable()
