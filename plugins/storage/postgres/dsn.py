"""Reads a DSN before anything dials it, so that a wrong one is told in one sentence and its password never is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec
from asyncpg.connect_utils import SessionAttribute

from kernel import Misconfigured

FORM = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"
OURS = frozenset(
    {
        "connect_timeout",
        "fallback_application_name",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "application_name",
        "load_balance_hosts",
    }
)
"""Parameters of libpq that a hub decides for itself; the driver would send them to the server, which knows them not."""
UNKNOWN = frozenset({"channel_binding", "gssencmode", "requirepeer", "require_auth", "sslcompression", "sslsni"})
"""Parameters of libpq that the driver cannot honour."""
FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
"""Parameters that name a file of this machine."""
WRITES = (SessionAttribute.read_write, SessionAttribute.primary, SessionAttribute.any)
"""The `target_session_attrs` under which a server that takes writes is found."""


class Address(msgspec.Struct, frozen=True):
    host: str
    """A name, an address, or the directory of a local socket."""
    port: int

    def __str__(self) -> str:
        if self.host.startswith("/"):
            return f"{self.host}/.s.PGSQL.{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Dsn(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    """What the driver is given: without the parameters that are decided here."""
    addresses: tuple[Address, ...]
    """In the order in which they are tried."""
    user: str
    database: str
    session: SessionAttribute
    """`target_session_attrs`: without it, a server that takes writes."""
    given: frozenset[str]
    """The names of its other parameters: what it says goes before what a hub would set."""

    @property
    def is_local(self) -> bool:
        """Whether it leads to a socket of this machine."""
        return any(address.host.startswith("/") for address in self.addresses)

    def __str__(self) -> str:
        """As it may be shown: no password, no parameters."""
        return f"postgresql://{self.user}@{','.join(map(str, self.addresses))}/{self.database}"


@lru_cache(maxsize=16)
def parsed(text: str) -> Dsn:
    """Raises: Misconfigured, with what is wrong."""
    url = _split(text.strip())
    parameters = _parameters(url.query)
    login, _, hosts = url.netloc.rpartition("@")
    user = unquote(login.partition(":")[0]) or parameters.get("user") or _missing("user")
    return Dsn(
        url=_without(text.strip(), parameters),
        addresses=tuple(_addresses(hosts, parameters)),
        user=user,
        database=_database(url.path, parameters),
        session=_session(parameters.get("target_session_attrs", "read-write")),
        given=frozenset(parameters) - OURS,
    )


def _split(text: str) -> SplitResult:
    """What Python says of a URL that it cannot read quotes the password, so that is never told."""
    try:
        url = urlsplit(text)
    except ValueError:
        raise _wrong(
            "it cannot be read: only an IPv6 address stands in `[` and `]`, other signs in its user or password are "
            "written as %5B and the like"
        ) from None
    if url.scheme not in ("postgresql", "postgres"):
        raise _wrong("it does not begin with postgresql://")
    cut = "@" in url.query and "@" not in url.netloc and "user=" not in url.query
    if cut or url.fragment or "@" in url.path or url.netloc.count("@") > 1:
        raise _wrong("its user or password holds a `/`, `?`, `#` or `@` as it is: write it as %2F, %3F, %23 or %40")
    return url


def _parameters(query: str) -> dict[str, str]:
    try:
        parameters = dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True)) if query else {}
    except ValueError:
        raise _wrong("what follows its `?` cannot be read: it is NAME=VALUE, more of them after a `&`") from None
    for name in sorted(UNKNOWN & parameters.keys()):
        raise _wrong(f"its parameter {name} is not supported: leave it out")
    return parameters


def _database(path: str, parameters: Mapping[str, str]) -> str:
    named = unquote(path.removeprefix("/"))
    return named or parameters.get("dbname") or parameters.get("database") or _missing("database")


def _session(text: str) -> SessionAttribute:
    if text in WRITES:
        return SessionAttribute(text)
    raise _wrong(f"target_session_attrs={text} finds no server that takes writes: leave it out")


def _addresses(hosts: str, parameters: Mapping[str, str]) -> Iterator[Address]:
    ports = parameters.get("port", "").split(",")
    names = hosts.split(",") if hosts else parameters.get("host", "").split(",")
    if len(ports) not in (1, len(names)):
        raise _wrong(f"it names {len(names)} hosts and {len(ports)} ports")
    for number, name in enumerate(names):
        host, port = _host_and_port(name)
        if not host:
            _missing("host")
        yield Address(_name(unquote(host)), _port(port or ports[number if len(ports) > 1 else 0] or "5432"))


def _host_and_port(name: str) -> tuple[str, str]:
    if name.startswith("["):
        host, _, rest = name[1:].partition("]")
        return host, rest.removeprefix(":")
    if name.startswith("/"):
        return name, ""
    host, _, port = name.partition(":")
    return host, port


def _name(host: str) -> str:
    try:
        _ = host if host.startswith("/") else host.encode("idna")
    except UnicodeError:
        raise _wrong(f"its host {host!r} is no name: the parts between dots have 1 to 63 characters") from None
    return host


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65_536:
        raise _wrong(f"its port {text!r} is none: a port is a number from 1 to 65535")
    return int(text)


def _without(text: str, parameters: Mapping[str, str]) -> str:
    """The URL without what is decided here; the rest as it was written."""
    kept = {name: value for name, value in parameters.items() if name not in OURS and name != "target_session_attrs"}
    before = text.partition("?")[0]
    return f"{before}?{urlencode(kept, quote_via=quote)}" if kept else before


def _missing(what: str) -> str:
    raise _wrong(f"it names no {what}")


def _wrong(why: str) -> Misconfigured:
    return Misconfigured(
        f"the DSN of the plugin postgres cannot be used: {why}; it has the form {FORM}, with further hosts after a "
        "comma and parameters such as ?sslmode=verify-full at the end"
    )
