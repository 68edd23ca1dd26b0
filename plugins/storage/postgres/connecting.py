"""Connects to the server that takes writes: named, watched for silence, and speaking the kernel's values.

Transactions on these connections are begun and ended by hand, never by `async with connection.transaction()`: anyio
cancels level-triggered, so its ROLLBACK would be cancelled too and leave an aborted transaction behind. End them in a
shielded scope with a deadline (`rolled_back`), and `terminate()` a connection whose state is unknown: `close()` waits
for a server that may be frozen.
"""

from __future__ import annotations

import logging
import os
import random
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg
import msgspec

from plugins.storage.postgres.dsn import Address, Dsn, parsed
from plugins.storage.postgres.faults import FAULTS, Unreachable

DEDICATED = frozenset({"writer", "owner", "ender", "reader", "signal", "upkeep"})
"""Roles whose plans are pinned: their statements are few, known, and EXPLAINed by a test."""
PINNED = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
BRIEF = frozenset({"writer", "owner", "ender"})
WAITS = "200ms"
"""So long a statement of these waits for what somebody else holds locked: it goes for many, and another hub may stand
still in the middle of a transaction. What must wait does so on a connection of the pool."""
PATIENT = frozenset({"pool", "upkeep", "sql"})
WAITS_LONG, ENOUGH = 0.8, 0.9
"""Of the deadline: so long these wait for one lock, and for one statement. So the server itself says that something is
locked, or slow, before it is given up as one that does not answer."""
if TYPE_CHECKING:
    Base = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Base, Pool = asyncpg.Connection, asyncpg.Pool
SILENCE = 10.0
"""Seconds after which the other side of a silent connection counts as gone, on both sides."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a hub's database is and how it is spoken to."""

    dsn: str
    listen_dsn: str | None = None
    """Direct, where `dsn` leads through a pooler: LISTEN does not survive one. None: as `dsn`."""
    statement_cache_size: int = 1_024
    """0 behind PgBouncer in transaction mode, where a prepared statement is some other connection's."""
    deadline: float = 5.0
    """Of connecting to all hosts, and of each statement (server.database_deadline)."""
    patience: float = 30.0
    """How long a start waits for a server that does not answer yet."""

    def address(self, *, listen: bool = False) -> Dsn:
        """Raises: Misconfigured."""
        return parsed(self.listen_dsn or self.dsn if listen else self.dsn)

    def pooled(self, *, listen: bool = False) -> bool:
        """Whether a pooler stands between: it refuses settings at connect, and keeps no session."""
        return self.statement_cache_size == 0 and not (listen and self.listen_dsn)


class Connection(Base):
    """A connection that knows when it has to go, and is given back without asking the server anything."""

    retires_at: float = float("inf")

    def get_reset_query(self) -> str:
        """Nothing: our transactions leave no state in the session. An open one is still rolled back."""
        return ""

    def watch(self) -> None:
        """Have the system notice a peer that went silently: the driver asks for no keepalive."""
        own = self._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        if own is None or own.family not in (socket.AF_INET, socket.AF_INET6):
            return
        with socket.socket(fileno=os.dup(own.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, name):
                    same.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE * 1_000))


async def connect(target: Target, role: str, node_id: str, *, listen: bool = False) -> Connection:
    """A connection to the first host that takes writes, or whatever `target_session_attrs` of the DSN asks for.

    Raises:
        Misconfigured: the DSN cannot be read.
        Unreachable: no host would do; it says why for each.
    """
    dsn = target.address(listen=listen)
    settings = _settings(target, dsn, "listen" if listen else role, node_id, listen)
    patience = target.deadline / len(dsn.addresses)
    faults: list[tuple[Address, BaseException]] = []
    for address in _in_order(dsn):
        try:
            connection = await _dial(target, dsn, address, settings, patience)
        except FAULTS as fault:
            faults.append((address, fault))
            continue
        _LAST[dsn.url] = address
        return connection
    raise Unreachable(dsn, faults)


async def open_pool(
    target: Target, node_id: str, role: str = "pool", *, min_size: int, max_size: int, idle: float, lifetime: float
) -> Pool:
    """Connections for everything that has none of its own. Give `acquire` a timeout.

    Raises: Misconfigured, Unreachable.
    """

    async def one(*_: object, **__: object) -> Connection:
        connection = await connect(target, role, node_id)
        connection.retires_at = time.monotonic() + lifetime * random.uniform(0.8, 1.0)
        return connection

    options: dict[str, Any] = {
        "min_size": min_size,
        "max_size": max_size,
        "max_queries": 2**62,
        "max_inactive_connection_lifetime": idle,
        "connect": one,
        "reset": _retired,
        "connection_class": Connection,
    }
    _driver.addFilter(_in_one_line)
    pool: Pool = await asyncpg.create_pool(**options)
    return pool


_driver = logging.getLogger("asyncpg.pool")


def _in_one_line(record: logging.LogRecord) -> bool:
    """A server that is away for a while is no traceback for each try."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", ()
        record.exc_info = None
    return True


def gone(connection: Any) -> bool:
    """Whether it is closed. The pool takes one that broke back at once, and what is left of it answers nothing."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


def drop(connection: Any) -> None:
    """Without a word to the server, which may be frozen."""
    if not gone(connection):
        connection.terminate()


async def rolled_back(connection: Any, within: float = 1.0) -> None:
    """End a transaction that failed, whoever cancels meanwhile; a connection that does not answer is given up.

    One whose BEGIN was given up does not know yet that it is in a transaction: so it is told in any case.
    """
    with anyio.CancelScope(shield=True), anyio.move_on_after(within) as scope:
        try:
            await connection.execute("ROLLBACK", timeout=within)
        except FAULTS:
            drop(connection)
    if scope.cancelled_caught:
        drop(connection)


# -- how it is dialled ---------------------------------------------------------------------------------------

_LAST: dict[str, Address] = {}
"""The host that answered last, by DSN: after a failover nobody waits again and again for the dead one."""


def _in_order(dsn: Dsn) -> list[Address]:
    last = _LAST.get(dsn.url)
    return sorted(dsn.addresses, key=lambda address: address != last)


async def _dial(target: Target, dsn: Dsn, address: Address, settings: dict[str, str], patience: float) -> Connection:
    connection: Connection = await asyncpg.connect(
        dsn.url,
        host=address.host,
        port=address.port,
        user=dsn.user,
        database=dsn.database,
        timeout=patience,
        command_timeout=target.deadline,
        statement_cache_size=target.statement_cache_size,
        max_cached_statement_lifetime=0,
        max_cacheable_statement_size=0,
        target_session_attrs=dsn.session,
        server_settings=settings,
        connection_class=Connection,
    )
    try:
        connection.watch()
        await _teach(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


def _settings(target: Target, dsn: Dsn, role: str, node_id: str, listen: bool) -> dict[str, str]:
    """A pooler refuses what it does not know. Behind one nothing is prepared, so each execution is planned for its
    own values and no plan needs pinning; time limits are the client's alone there."""
    name = {"application_name": f"pointsman-{role}:{node_id}"}
    if target.pooled(listen=listen):
        return name
    limit = int(target.deadline * 1_000)
    patient = {"lock_timeout": str(int(limit * WAITS_LONG)), "statement_timeout": str(int(limit * ENOUGH))}
    wanted = {
        "timezone": "UTC",
        "default_transaction_isolation": "read committed",
        "jit": "off",
        "statement_timeout": str(limit),
        "idle_in_transaction_session_timeout": str(int(target.deadline * 2_000)),
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": str(int(SILENCE * 1_000)),
        **(PINNED if role in DEDICATED else {}),
        **({"lock_timeout": WAITS} if role in BRIEF else {}),
        **(patient if role in PATIENT else {}),
    }
    return name | {key: value for key, value in wanted.items() if key not in dsn.given}


async def _retired(connection: Connection) -> None:
    """On its way back into the pool: one that is old enough goes, and the next asker dials anew."""
    if time.monotonic() > connection.retires_at:
        connection.terminate()


# -- what values look like -----------------------------------------------------------------------------------

_FROM_2000 = 946_684_800_000_000
"""Microseconds from the Unix epoch to PostgreSQL's."""
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


async def _teach(connection: Connection) -> None:
    """Instants as integers, ids as text, JSON as its text, as on SQLite. No round trip: these types are known."""
    teach = connection.set_type_codec
    await teach("timestamptz", schema="pg_catalog", encoder=_instant_out, decoder=_instant_in, format="tuple")
    await teach("uuid", schema="pg_catalog", encoder=_id_out, decoder=_id_in, format="binary")
    await teach("json", schema="pg_catalog", encoder=json_out, decoder=bytes.decode, format="binary")
    await teach("jsonb", schema="pg_catalog", encoder=_jsonb_out, decoder=_jsonb_in, format="binary")


def _instant_out(instant: int) -> tuple[int]:
    return (instant - _FROM_2000,)


def _instant_in(value: tuple[int]) -> int:
    return value[0] + _FROM_2000


def _id_out(text: str) -> bytes:
    data = bytes.fromhex(text.replace("-", ""))
    if len(data) != 16:
        raise ValueError("an id has 32 hexadecimal digits")
    return data


def _id_in(data: bytes) -> str:
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def json_out(text: str) -> bytes:
    """JSON's text as PostgreSQL can keep it: it has no U+0000, so that becomes U+FFFD, and no broker's answer is
    lost."""
    data = text.encode()
    return _NUL.sub(rb"\1\\ufffd", data) if b"\\u0000" in data else data


def _jsonb_out(text: str) -> bytes:
    return b"\x01" + json_out(text)


def _jsonb_in(data: bytes) -> str:
    return data[1:].decode()
