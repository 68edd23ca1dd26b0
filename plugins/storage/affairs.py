"""What the rows themselves tell of trouble, for `pointsman doctor`: on either database."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from kernel import Finding, Keyring, Level, Misconfigured, SchemaState, open_secret
from plugins.storage.schema import broker_secrets, hub_nodes, runtime_brokers

SHOWN = 5


def affairs(connection: sa.Connection, now: int, lost_after: float, secret: str | None) -> Iterator[Finding]:
    """The schema is that of this code. `now` is the clock by which the hubs beat, `secret` what a hub would have as
    SESSION_SECRET."""
    yield _hubs(connection, now - int(lost_after * 1_000_000))
    yield _conflicts(connection)
    yield from _sealed(connection, secret)


def _sealed(connection: sa.Connection, secret: str | None) -> Iterator[Finding]:
    """Whether the newest secret of a broker opens."""
    columns = broker_secrets.c
    newest = sa.select(columns.sealed, columns.broker_id, columns.key_id).where(columns.status != "revoked")
    row = connection.execute(newest.order_by(columns.created.desc()).limit(1)).first()
    if row is None or secret is None:
        return
    try:
        open_secret(Keyring(secret), *row)
    except Misconfigured as fault:
        yield Finding(check="secrets", level=Level.FAIL, told=fault.message)
    else:
        yield Finding(check="secrets", told="the secrets in the database open with this SESSION_SECRET")


def _hubs(connection: sa.Connection, alive: int) -> Finding:
    beats = sa.select(hub_nodes.c.beat_at).where(hub_nodes.c.lost_at.is_(None))
    found = [row[0] > alive for row in connection.execute(beats)]
    told = f"{sum(found)} beat now"
    if all(found):
        return Finding(check="hubs", told=told)
    fix = "start a hub: the first one that runs judges them and takes over what they held"
    silent = f"{told}, {found.count(False)} went silent and nobody has judged them yet"
    return Finding(check="hubs", level=Level.WARN, told=silent, fix=fix)


def _conflicts(connection: sa.Connection) -> Finding:
    wanted = runtime_brokers.c.conflict, runtime_brokers.c.deleted_at.is_(None)
    names = sa.select(runtime_brokers.c.name).where(*wanted).order_by(runtime_brokers.c.name)
    found = [row[0] for row in connection.execute(names)]
    if not found:
        return Finding(check="brokers", told="none shares its identity with another")
    shown = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    fix = "give each process an identity of its own with `pointsman broker register`"
    return Finding(check="brokers", level=Level.WARN, told=f"two processes fight for the identity of {shown}", fix=fix)


def schema_finding(state: SchemaState) -> Finding:
    """How the schema of a database stands to this code."""
    if state.found is None:
        return Finding(check="schema", told=f"none yet: the first start makes {state.wanted}")
    if not state.known:
        told = (
            f"the database has schema {state.found}, which is newer than this program (it knows up to {state.wanted})"
        )
        fix = "start the version that wrote it, or a later one"
        return Finding(check="schema", level=Level.FAIL, told=told, fix=fix)
    if state.found != state.wanted:
        return Finding(check="schema", told=f"{state.found}: the first start brings it to {state.wanted}")
    return Finding(check="schema", told=f"{state.found}, up to date")
