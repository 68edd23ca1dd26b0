"""A server that does not let us in: why, in one sentence, what to change, and whether waiting may help."""

from __future__ import annotations

import ssl
from collections.abc import Iterable

import asyncpg
from asyncpg import exceptions as pg

from kernel import Finding, Level
from plugins.storage.postgres.dsn import FILES, Dsn
from plugins.storage.postgres.faults import Unreachable, why

_HOPELESS = (
    pg.InvalidAuthorizationSpecificationError,
    pg.InvalidCatalogNameError,
    pg.InsufficientPrivilegeError,
    pg.ProtocolViolationError,
    pg.UndefinedObjectError,
    pg.CantChangeRuntimeParamError,
    pg.InvalidParameterValueError,
    ssl.SSLCertVerificationError,
    asyncpg.InterfaceError,
)
"""Waiting does not help: somebody has to change something."""
_UNREADABLE = (FileNotFoundError, IsADirectoryError, PermissionError)
"""What the driver raises for a file of TLS, without its name."""


def hopeless(fault: Unreachable) -> bool:
    return any(_hopeless(one, fault.dsn) for _, one in fault.faults)


def _hopeless(fault: BaseException, dsn: Dsn) -> bool:
    return isinstance(fault, _HOPELESS) or _about_files(fault, dsn)


def _about_files(fault: BaseException, dsn: Dsn) -> bool:
    """Whether it is a file of the DSN's TLS that cannot be read, and not a local socket that is not there."""
    return isinstance(fault, _UNREADABLE) and bool(FILES & dsn.given) and not dsn.is_local


def refused(fault: Unreachable, *, key: str = "dsn") -> Finding:
    """Why no server of a DSN would do, and what to change. `key` is the setting that holds the DSN."""
    address, telling = max(fault.faults, key=lambda one: _hopeless(one[1], fault.dsn))
    others = [f"{other}: {why(one)}" for other, one in fault.faults if other is not address]
    told = "; ".join([f"the database {fault.dsn} cannot be used, {address}: {why(telling)}", *others])
    return Finding(
        check="database", level=Level.FAIL, told=told, fix=_fix(telling, fault.dsn, f"`{key}` of the plugin postgres")
    )


def _fix(fault: BaseException, dsn: Dsn, setting: str) -> str:
    """What to change, of a server that answered and of one that did not."""
    return _fix_of_refusal(fault, dsn, setting) or _fix_of_way(fault, dsn, setting)


def _fix_of_refusal(fault: BaseException, dsn: Dsn, setting: str) -> str | None:
    match fault:
        case pg.InvalidPasswordError():
            return f"correct the password in {setting}, or its user"
        case pg.InvalidAuthorizationSpecificationError():
            return f"create the role {dsn.user}, or let it in with a line of pg_hba.conf"
        case pg.InvalidCatalogNameError():
            owned = f'"{dsn.database}" OWNER {dsn.user}'
            return f"create it with `CREATE DATABASE {owned} ENCODING 'UTF8' TEMPLATE template0`, or correct {setting}"
        case pg.InsufficientPrivilegeError():
            return f'`GRANT CONNECT ON DATABASE "{dsn.database}" TO {dsn.user}`'
        case pg.ProtocolViolationError() if setting.startswith("`listen_dsn`"):
            return f"a pooler that refuses settings stands in front of it: let {setting} lead to the server itself"
        case pg.ProtocolViolationError():
            return (
                "a pooler that refuses settings stands in front of it: set `statement_cache_size: 0` and a direct "
                "`listen_dsn` in the config of the plugin postgres"
            )
        case pg.UndefinedObjectError() | pg.InvalidParameterValueError() | pg.CantChangeRuntimeParamError():
            return f"leave that parameter out of {setting}"
        case pg.TooManyConnectionsError():
            return (
                f"raise max_connections, or the CONNECTION LIMIT of {dsn.user} or of the database, or lower "
                "storage.pool_max, or run fewer hubs"
            )
        case pg.TargetServerAttributeNotMatched():
            return (
                f"name the primary in {setting}, or all servers with a comma between them; if it is the primary, "
                f"`ALTER ROLE {dsn.user} SET default_transaction_read_only = off`"
            )
        case pg.CannotConnectNowError():
            return "wait until it has started"
    return None


def _fix_of_way(fault: BaseException, dsn: Dsn, setting: str) -> str:
    match fault:
        case ssl.SSLCertVerificationError():
            return f"name the authority that signed it with sslrootcert=FILE in {setting}"
        case ssl.SSLError():
            return f"look at sslmode and at the files that sslrootcert, sslcert and sslkey name in {setting}"
        case _ if _about_files(fault, dsn):
            return f"let the hub read the files that {_listed(FILES & dsn.given)} in {setting}"
        case asyncpg.InterfaceError():
            return f"correct {setting}"
        case ConnectionError() if "SSL" in str(fault):
            return f"turn TLS on at the server, or take sslmode out of {setting}"
        case _:
            return f"start it, let this machine reach it, or correct {setting}"


def _listed(names: Iterable[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} and {last} name" if others else f"{last} names"
