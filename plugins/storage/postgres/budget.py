"""How many connections a hub opens, and how many hubs a server has room for."""

from __future__ import annotations

import msgspec

from plugins.storage.postgres.connecting import DEDICATED


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Of one hub."""

    pool: int
    """storage.pool_max."""
    dedicated: int = len(DEDICATED)
    listener: int = 1

    @property
    def needed(self) -> int:
        return self.pool + self.dedicated + self.listener

    def __str__(self) -> str:
        parts = f"{self.pool} pool_max, {self.dedicated} dedicated, {self.listener} listener"
        return f"{self.needed} connections a hub ({parts})"


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a server gives to this user in this database."""

    max_connections: int
    reserved: int
    """For superusers and maintenance."""
    user_limit: int | None
    database_limit: int | None
    used: int
    """By others than hubs, now."""
    running: int = 0
    """Hubs that are at work in this database now."""

    @property
    def offered(self) -> int:
        limits = (self.max_connections - self.reserved, self.user_limit, self.database_limit)
        return min(limit for limit in limits if limit is not None)

    @property
    def narrowest(self) -> str:
        """The setting that lets no more than `offered` be."""
        named = {
            "the CONNECTION LIMIT of the user": self.user_limit,
            "the CONNECTION LIMIT of the database": self.database_limit,
        }
        return next((name for name, limit in named.items() if limit == self.offered), "max_connections")

    def hubs(self, budget: Budget) -> int:
        """How many fit, beside the connections that others have now."""
        return max(0, (self.offered - self.used) // budget.needed)

    def __str__(self) -> str:
        told = f"the server has {self.max_connections} with {self.reserved} reserved"
        if self.offered < self.max_connections - self.reserved:
            told += f" and lets this user have {self.offered} in this database"
        return f"{told}, others use {self.used}"

    def fits(self, budget: Budget) -> str:
        now = f", {self.running} run now" if self.running else ""
        return f"{budget}; {self}: {self.hubs(budget)} such hubs fit{now}"
