"""DSNs: what is read from one, what is told of a wrong one, and that its password is never told."""

from __future__ import annotations

import pytest
from asyncpg.connect_utils import SessionAttribute

from kernel import Misconfigured
from plugins.storage.postgres.dsn import Address, parsed

SECRET = "s3cr3t-of-mine"


def test_everything_that_a_dsn_names_is_read() -> None:
    dsn = parsed(f"postgresql://hub:{SECRET}@db1:5433,db2,[::1]:6000/point%20man?sslmode=verify-full&sslrootcert=/ca")
    assert dsn.addresses == (Address("db1", 5433), Address("db2", 5432), Address("::1", 6000))
    assert (dsn.user, dsn.database) == ("hub", "point man")
    assert dsn.session is SessionAttribute.read_write
    assert dsn.given == {"sslmode", "sslrootcert"}
    assert "sslmode=verify-full" in dsn.url


def test_local_socket_is_a_host() -> None:
    dsn = parsed("postgresql://hub@/pointsman?host=/run/postgresql&port=5433")
    assert dsn.addresses == (Address("/run/postgresql", 5433),)


def test_a_password_among_the_parameters_may_hold_an_at_sign() -> None:
    assert parsed("postgresql://db/hub?user=hub&password=a@b").user == "hub"


def test_what_the_dsn_says_of_the_wanted_server_goes_first() -> None:
    assert parsed("postgres://hub@db/hub?target_session_attrs=primary").session is SessionAttribute.primary


def test_parameters_that_a_hub_decides_are_not_sent_to_the_server() -> None:
    dsn = parsed("postgresql://hub@db/hub?connect_timeout=3&keepalives_idle=10&application_name=x&jit=on")
    assert dsn.url == "postgresql://hub@db/hub?jit=on"
    assert dsn.given == {"jit"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "does not begin with postgresql://"),
        ("host=db user=hub dbname=hub", "does not begin with postgresql://"),
        ("mysql://hub@db/hub", "does not begin with postgresql://"),
        (f"postgresql://hub:{SECRET}@/hub", "names no host"),
        (f"postgresql://hub:{SECRET}@db1,/hub", "names no host"),
        (f"postgresql://hub:{SECRET}@db", "names no database"),
        ("postgresql://db/hub", "names no user"),
        (f"postgresql://hub:{SECRET}@db:high/hub", "port 'high'"),
        (f"postgresql://hub:{SECRET}@db:99999/hub", "port '99999'"),
        (f"postgresql://hub:{SECRET}#1@db/hub", "%23"),
        (f"postgresql://hub:{SECRET}/1@db/hub", "%2F"),
        (f"postgresql://hub:{SECRET}@1@db/hub", "%40"),
        (f"postgresql://hub:{SECRET}@db/hub?sslmode", "cannot be read"),
        (f"postgresql://hub:{SECRET}@db/hub?target_session_attrs=leader", "target_session_attrs=leader"),
        (f"postgresql://hub:{SECRET}@db/hub?channel_binding=require", "channel_binding"),
        (f"postgresql://hub:{SECRET}@a,b,c/hub?port=1,2", "3 hosts and 2 ports"),
        (f"postgresql://hub:{SECRET}@[::1/hub", "cannot be read"),
        (f"postgresql://hub:a[{SECRET}@db/hub", "%5B"),
        (f"postgresql://hub:a?{SECRET}@db/hub", "%3F"),
        (f"postgresql://hub:a?b={SECRET}@db/hub", "%3F"),
        (f"postgresql://hub:\u2100{SECRET}@db/hub", "cannot be read"),
        (f"postgresql://hub:{SECRET}", "names no user"),
        (f"postgresql://hub:{SECRET}@db..internal/hub", "its host 'db..internal' is no name"),
        (f"postgresql://hub:{SECRET}@db/hub?target_session_attrs=standby", "no server that takes writes: leave it out"),
    ],
)
def test_wrong_dsn_is_told_without_its_password(text: str, told: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parsed(text)
    assert told in refused.value.message
    assert "postgresql://USER:PASSWORD@HOST:5432/DATABASE" in refused.value.message
    assert SECRET not in refused.value.message


def test_dsn_is_shown_without_password_and_parameters() -> None:
    shown = str(parsed(f"postgresql://hub:{SECRET}@db1,db2:5433/hub?sslpassword={SECRET}"))
    assert shown == "postgresql://hub@db1:5432,db2:5433/hub"
