"""SQLAlchemy Core for plugins with tables of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from kernel import StorageUnavailable
from plugins.storage.postgres.faults import FAULTS, repeatable, translated

T = TypeVar("T")
TRIES = 5
AT_ONCE = 4
"""Each transaction dials a connection of its own: so many at most, or the server has none left for other hubs."""


class PostgresSql:
    """One function, one transaction."""

    def __init__(self, engine: AsyncEngine, deadline: float) -> None:
        self._engine = engine
        self._deadline = deadline
        self._places = anyio.CapacityLimiter(AT_ONCE)

    async def run(self, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Rows for a SELECT or RETURNING, else none."""

        def run_it(connection: Any) -> list[tuple[Any, ...]]:
            result = connection.execute(statement, parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

        return await self.transaction(run_it)

    async def transaction(self, function: Callable[[Any], T]) -> T:
        """All of what `function(connection)` does, or nothing; it is run again when two transactions met."""
        try:
            with anyio.fail_after(self._deadline):
                return await self._repeated(function)
        except TimeoutError as fault:
            raise StorageUnavailable("the database did not answer within server.database_deadline") from fault

    async def _repeated(self, function: Callable[[Any], T]) -> T:
        for number in range(1, TRIES + 1):
            try:
                async with self._places, self._engine.begin() as connection:
                    return await connection.run_sync(function)
            except (*FAULTS, DBAPIError) as fault:
                if number == TRIES or not repeatable(fault):
                    raise translated(fault) or fault from fault
        raise AssertionError("the last try returns or raises")
