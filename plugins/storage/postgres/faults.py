"""Translates what the server and its driver say into the kernel's words; nowhere else is a driver's error looked at."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

import asyncpg
from asyncpg import exceptions as pg
from sqlalchemy.exc import DBAPIError

from kernel import AlreadyExists, Invalid, PointsmanError, StorageUnavailable
from plugins.storage.postgres.dsn import Address, Dsn

FAULTS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    UnicodeEncodeError,
    OverflowError,
)
"""All that the driver raises, and our codecs in it."""

_TAKEN = {
    "uq_agents_project_id_slug_live": "an agent of this name exists in this project already",
    "uq_projects_slug": "a project of this name exists already",
    "uq_runtime_brokers_name_live": "a broker of this name exists already",
    "uq_runtime_brokers_slug_live": "a broker exists already whose name differs in capitals, spaces or signs only",
    "uq_users_email": "a user with this address exists already",
}
"""What is unique, in words, by the name of its constraint or index."""

_FOUND_NOW = frozenset({"pk_transitions", "pk_idempotency_keys", "pk_broker_dispatch", "pk_messages"})
"""Keys of rows that another transaction wrote since this one looked for them: a step with the same number, the same
call's key, the same call itself. Run again, it finds them."""
_REPEATABLE = (pg.SerializationError, pg.DeadlockDetectedError, pg.InvalidCachedStatementError)

_WHY: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (pg.ReadOnlySQLTransactionError, "the server takes no writes, it is a standby or became one"),
    (
        pg.TargetServerAttributeNotMatched,
        "it is a read-only standby, or default_transaction_read_only is on for this user or this database",
    ),
    ((pg.AdminShutdownError, pg.CrashShutdownError), "the server ended the connection"),
    (pg.IdleInTransactionSessionTimeoutError, "the server ended a transaction that this hub left waiting"),
    (pg.CannotConnectNowError, "the server is starting up or shutting down"),
    (pg.TooManyConnectionsError, "the server has no connection left"),
    (pg.InvalidPasswordError, "the password is wrong"),
    (pg.InvalidAuthorizationSpecificationError, "the server does not let this user in"),
    (pg.InvalidCatalogNameError, "there is no such database"),
    (pg.QueryCanceledError, "the statement took longer than server.database_deadline"),
    (pg.LockNotAvailableError, "another transaction held a lock for too long"),
    (pg.DiskFullError, "the server's disk is full"),
    (pg.OutOfMemoryError, "the server is out of memory"),
    (pg.InsufficientPrivilegeError, "the database's user may not do this"),
    (pg.UndefinedTableError, "a table is missing: another program changed the schema"),
    (pg.UndefinedColumnError, "a column is missing: another program changed the schema"),
    (ssl.SSLCertVerificationError, "its certificate is not trusted"),
    (ssl.SSLError, "TLS failed"),
    (socket.gaierror, "no such host is known"),
    (ConnectionRefusedError, "nothing listens there"),
    (TimeoutError, "no answer within server.database_deadline"),
)
"""The first that fits is told."""
_SAID = (TimeoutError, pg.TargetServerAttributeNotMatched)
"""The driver's, not the server's: ours say more."""


class Unreachable(StorageUnavailable):
    """No server of the DSN would take this hub."""

    def __init__(self, dsn: Dsn, faults: Sequence[tuple[Address, BaseException]]) -> None:
        self.dsn = dsn
        self.faults = tuple(faults)
        told = "; ".join(f"{address}: {why(fault)}" for address, fault in faults)
        super().__init__(f"the database does not answer, nothing was done: {told}")
        if faults:
            self.__cause__ = faults[-1][1]


def repeatable(fault: BaseException | None) -> bool:
    """Whether the same transaction may well succeed when it is run again: nothing of it was kept."""
    if isinstance(fault, DBAPIError):
        return repeatable(beneath(fault))
    if isinstance(fault, pg.UniqueViolationError):
        return fault.constraint_name in _FOUND_NOW
    return isinstance(fault, _REPEATABLE)


def busy(fault: BaseException | None) -> bool:
    """Whether another transaction held a lock for longer than this connection waits for one: nothing was done."""
    return isinstance(fault, pg.LockNotAvailableError)


def misled(fault: BaseException | None) -> bool:
    """Whether the connection leads to a server that takes no writes any more: nothing was done, another may do."""
    return isinstance(beneath(fault) if fault else None, pg.ReadOnlySQLTransactionError)


def translated(fault: BaseException | None) -> BaseException | None:
    """The kernel's error for a driver's; any other error as it is."""
    match fault:
        case DBAPIError():
            return _chained(translated(beneath(fault)) or fault, fault)
        case pg.UniqueViolationError() | pg.ExclusionViolationError():
            taken = _TAKEN.get(fault.constraint_name or "", "something with this name or id exists already")
            return _chained(AlreadyExists(f"{taken}: choose another"), fault)
        case pg.ForeignKeyViolationError():
            told = "names something that does not exist, or that others still refer to"
            return _chained(Invalid(fields={"reference": told}), fault)
        case pg.IntegrityConstraintViolationError():
            return _chained(Invalid(fields={"value": f"the database refuses it: {_said(fault)}"}), fault)
        case (
            pg.DataError()
            | pg.StatementTooComplexError()
            | pg.ProgramLimitExceededError()
            | UnicodeEncodeError()
            | OverflowError()
        ):
            return _chained(Invalid(fields={"value": f"the database cannot store it: {_said(fault)}"}), fault)
        case pg.PostgresError() | pg.InterfaceError() | pg.InternalClientError() | OSError() | TimeoutError():
            return _chained(_away(fault), fault)
        case _:
            return fault


def why(fault: BaseException) -> str:
    """What happened, for people: our words, then the server's."""
    words = next((words for kind, words in _WHY if isinstance(fault, kind)), None)
    said = _said(fault)
    return said if words is None else words if isinstance(fault, _SAID) else f"{words} ({said})"


def _said(fault: BaseException) -> str:
    """Its first line: DETAIL and HINT have lines of their own, and quote whole rows."""
    return next(iter(str(fault).strip().splitlines()), type(fault).__name__)


def _away(fault: BaseException) -> PointsmanError:
    return StorageUnavailable(f"the database does not work now, nothing was done: {why(fault)}")


def beneath(fault: BaseException) -> BaseException | None:
    """The driver's own error: SQLAlchemy wraps it twice."""
    own: BaseException | None = fault.orig if isinstance(fault, DBAPIError) else fault
    while own is not None and not isinstance(own, FAULTS):
        own = own.__cause__
    return own


def _chained(translation: BaseException | None, cause: BaseException) -> BaseException | None:
    if translation is not None and translation is not cause:
        translation.__cause__ = cause
    return translation
