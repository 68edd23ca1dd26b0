"""Fixtures that give a test a real PostgreSQL: one server for each version and worker, an empty database for each test.

`postgres_dsn` is a fresh database on the newest server here. `every_postgres_dsn` is that on the oldest and on the
newest, so that a test which asks for it runs on both. `postgres` and `every_postgres` are their servers, shared by the
tests of one worker: who stops, kills or freezes one makes a `Server` of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import pytest

from kernel.testing.postgres import PostgresMissing, Server, available, find


def _ends() -> Sequence[int | None]:
    """The oldest and the newest major version here; None, which fails with its reason, when there is no PostgreSQL."""
    try:
        majors = [binaries.major for binaries in available()]
    except PostgresMissing:
        return [None]
    return sorted({majors[0], majors[-1]})


class Servers:
    """Started when first asked for."""

    def __init__(self) -> None:
        self._started: dict[int, Server] = {}

    def of(self, major: int) -> Server:
        if major not in self._started:
            server = self._started[major] = Server(find(major))
            server.start()
        return self._started[major]

    def close(self) -> None:
        for server in self._started.values():
            server.close()


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def postgres(postgres_servers: Servers) -> Server:
    return postgres_servers.of(available()[-1].major)


@pytest.fixture(scope="session", params=_ends(), ids=lambda major: f"pg{major}")
def every_postgres(postgres_servers: Servers, request: pytest.FixtureRequest) -> Server:
    return postgres_servers.of(request.param or available()[-1].major)


@pytest.fixture
def postgres_dsn(postgres: Server) -> Iterator[str]:
    yield from _database(postgres)


@pytest.fixture
def every_postgres_dsn(every_postgres: Server) -> Iterator[str]:
    yield from _database(every_postgres)


def _database(server: Server) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield server.create_database(name)
    server.drop_database(name)
