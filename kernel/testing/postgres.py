"""A real PostgreSQL for tests and demonstrations: started, stopped, killed, frozen, copied, and never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, Self
from urllib.parse import quote, urlencode

from kernel.testing.postgres_account import Account, account_for
from kernel.testing.postgres_binaries import Binaries, PostgresMissing, available, find, installed
from kernel.testing.postgres_place import HOST, children, free_port, new_folder, remove_leftovers, signalled

__all__ = ["Binaries", "PostgresFailed", "PostgresMissing", "Server", "Standby", "available", "find", "installed"]

SETTINGS: Mapping[str, str] = {
    "max_connections": "200",
    "shared_buffers": "32MB",
    "wal_level": "replica",
    "max_wal_senders": "8",
    "wal_keep_size": "256MB",
    "log_line_prefix": "%m [%p] %a %d ",
}
UNSAFE: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}
"""Against a crash of the machine only: what was committed is there after any death of the server."""

SUPERUSER = "postgres"
STOP = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
PATIENCE = 60.0

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PARENT_DEATH_SIGNAL = 1


class PostgresFailed(AssertionError):
    """A server, or a statement for it, did not do what it should; with the end of its log."""


class Server:
    """One cluster in a folder of its own, on a port of its own. Enter it, or `start` and `close` it.

    `durable=False` leaves out the waits for the disk. With `password` the superuser needs it, over any way; without
    one everybody is trusted. `tls` names a certificate and its key, for binaries that speak it.
    Start it from the main thread: the server dies with the thread that started it.
    """

    host = HOST

    def __init__(
        self,
        binaries: Binaries | None = None,
        *,
        durable: bool = False,
        password: str | None = None,
        settings: Mapping[str, str] | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.password = password
        self.settings = {**SETTINGS, **({} if durable else UNSAFE), **(settings or {})}
        self.port = 0
        self._binaries = binaries
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._home: Path | None = None
        self._lock: IO[str] | None = None
        self._account: Account | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what it is

    @property
    def binaries(self) -> Binaries:
        if self._binaries is None:
            self._binaries = find()
        return self._binaries

    @property
    def directory(self) -> Path:
        """Holds data, socket and log; exists from `start` to `close`."""
        assert self._home, "the server was never started"
        return self._home

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> str:
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process, "the server was never started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def dsn(
        self,
        database: str = "postgres",
        *,
        user: str = SUPERUSER,
        password: str | None = None,
        port: int | None = None,
        unix: bool = False,
        **parameters: str,
    ) -> str:
        """A URL for this server; `port` may be a proxy's, `parameters` are libpq's (`sslmode`, `application_name`)."""
        secret = password or (self.password if user == SUPERUSER else None)
        who = quote(user, safe="") + (f":{quote(secret, safe='')}" if secret else "")
        place = "" if unix else f"{self.host}:{port or self.port}"
        if unix:
            parameters = {"host": str(self.directory), "port": str(self.port), **parameters}
        asked = f"?{urlencode(parameters, safe='/')}" if parameters else ""
        return f"postgresql://{who}@{place}/{quote(database, safe='')}{asked}"

    # -- its life

    def start(self) -> None:
        """Serves from now on; made first if it is new. Raises: PostgresMissing, PostgresFailed."""
        if self._home is None:
            with contextlib.ExitStack() as undone:
                undone.callback(self.close)
                self._make()
                self._tell_settings()
                self._serve_somewhere()
                undone.pop_all()
        elif not self.alive:
            self._serve()

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast", *, patience: float = PATIENCE) -> None:
        """Ends the process and keeps the data. `immediate` is what a crash leaves. Raises: PostgresFailed."""
        if self._process is None or not self.alive:
            return
        self.thaw()
        self._process.send_signal(STOP[mode])
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            raise self._failed(f"did not stop ({mode}) within {patience:g} s") from None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stopped and started again on the same port."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """`kill -9` of the server and all its backends at once."""
        if self._process is None or not self.alive:
            return
        for pid in self._freeze():
            signalled(pid, signal.SIGKILL)
        self._process.wait(PATIENCE)

    def freeze(self) -> None:
        """Stands still with all its connections open, until `thaw`."""
        if self.alive:
            self._freeze()

    def thaw(self) -> None:
        if self.alive:
            for pid in (*children(self.pid), self.pid):
                signalled(pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends it and removes its folder; works in any state."""
        try:
            self.stop("immediate")
        except PostgresFailed:
            self.kill()
        if self._home:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None
        if self._lock:
            self._lock.close()
            self._lock = None

    # -- what is in it

    def sql(self, statement: str, database: str = "postgres", *, user: str = SUPERUSER) -> list[list[str]]:
        """The rows of its answer as text, as the superuser and past every proxy. Raises: PostgresFailed."""
        flags = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--field-separator=\x1f"]
        done = subprocess.run(
            [self.binaries.path("psql"), *flags, "--set=ON_ERROR_STOP=1", f"--dbname={self.dsn(database, user=user)}"],
            input=statement,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "PGCONNECT_TIMEOUT": "20", "PGCLIENTENCODING": "UTF8", "PGAPPNAME": "test"},
        )
        if done.returncode:
            raise PostgresFailed(f"{statement[:200]}: {done.stderr.strip()}")
        return [line.split("\x1f") for line in done.stdout.splitlines()]

    def create_database(self, name: str, *, template: str | None = None, owner: str = SUPERUSER) -> str:
        """Its DSN."""
        copied = f' template "{template}"' if template else ""
        self.sql(f'create database "{name}" owner "{owner}"{copied}')
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Also when somebody is still connected to it."""
        self.sql(f'drop database if exists "{name}" with (force)')

    def configure(self, **settings: str) -> None:
        """Changes settings that take effect on a reload."""
        changes = [f"alter system set {name} = '{value}';" for name, value in settings.items()]
        for change in (*changes, "select pg_reload_conf()"):
            self.sql(change)

    def terminate(self, application: str) -> int:
        """Ends the connections whose `application_name` is like this pattern, and says how many."""
        ended = self.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            f"where application_name like '{application}' and pid <> pg_backend_pid()"
        )
        return len(ended)

    @contextmanager
    def neighbours(self, count: int, statement: str, database: str = "postgres") -> Iterator[None]:
        """So many others who run this statement until the block ends."""
        asking = [self.binaries.path("psql"), "--no-psqlrc", "--quiet", f"--command={statement}"]
        others = [
            subprocess.Popen(
                [*asking, self.dsn(database, application_name="neighbour")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(count)
        ]
        try:
            yield
        finally:
            for other in others:
                other.kill()
                other.wait(PATIENCE)
            if self.alive:
                self.terminate("neighbour")

    def standby(self, *, through: int | None = None) -> Standby:
        """A hot standby that streams from here, or through a proxy's port; not started yet."""
        return Standby(self, through=through)

    # -- how

    def _make(self) -> None:
        home = self._own_folder()
        password = home / "password"
        password.write_text(self.password or "unused")
        self._account.own(password) if self._account else None
        method = "scram-sha-256" if self.password else "trust"
        self._run(
            "initdb", "--no-sync", f"--auth={method}", f"--pwfile={password}", f"--username={SUPERUSER}",
            "--encoding=UTF8", "--locale=C", f"--pgdata={home / 'data'}",
        )  # fmt: skip
        password.unlink()

    def _own_folder(self) -> Path:
        remove_leftovers()
        self._home, self._lock = new_folder()
        self._account = account_for(self.binaries, self._home)
        self._account.own(self._home)
        return self._home

    def _tell_settings(self) -> None:
        lines = [f"{name} = '{value}'\n" for name, value in self.settings.items()]
        if self._tls:
            for source, name in zip(self._tls, ("server.crt", "server.key"), strict=True):
                copy = self.data / name
                copy.write_bytes(source.read_bytes())
                copy.chmod(0o600)
                assert self._account
                self._account.own(copy)
            lines.append("ssl = on\n")
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(lines)

    def _run(self, program: str, *arguments: str) -> None:
        assert self._account
        done = self._account.run(program, *arguments)
        if done.returncode:
            raise self._failed(f"{program}: {done.stderr.strip()[-2000:]}")

    def _serve_somewhere(self) -> None:
        """On a free port: below the range of outgoing connections, so that it is still free after a restart."""
        for attempt in range(10):
            self.port = free_port()
            try:
                return self._serve()
            except PostgresFailed as taken:
                if attempt == 9 or "could not bind" not in str(taken):
                    raise
        return None

    def _serve(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise PostgresFailed("start PostgreSQL from the main thread: it ends with the thread that started it")
        assert self._account
        place = ("-p", str(self.port), "-h", self.host, "-k", str(self.directory))
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._account.command("postgres", "-D", str(self.data), *place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,  # Ctrl-C at the terminal is for those who use it
                preexec_fn=_die_with_parent if _LIBC else None,  # noqa: PLW1509 - one call into libc, no locks
                **self._account.process,
            )
        _until(self._answers, lambda: self._failed("was not ready in time"))

    def _answers(self) -> bool:
        if not self.alive:
            raise self._failed("ended at its start")
        lines = _lines(self.data / "postmaster.pid")
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _freeze(self) -> list[int]:
        """The server's and all its children's ids; the server first, so that it starts no more of them."""
        os.kill(self.pid, signal.SIGSTOP)
        backends = children(self.pid)
        for pid in backends:
            signalled(pid, signal.SIGSTOP)
        return [self.pid, *backends]

    def _failed(self, what: str) -> PostgresFailed:
        tail = "\n".join(self.log.splitlines()[-25:]) if self._home else ""
        return PostgresFailed(f"PostgreSQL {self.binaries.version} {what}\n{tail}".strip())


class Standby(Server):
    """A hot standby. `detach` makes it miss what the primary commits from then on; `promote` makes it a primary."""

    def __init__(self, primary: Server, *, through: int | None = None) -> None:
        super().__init__(primary.binaries, password=primary.password)
        self.primary = primary
        self._through = through

    def _make(self) -> None:
        home = self._own_folder()
        source = f"--dbname={self.primary.dsn(port=self._through, application_name='standby')}"
        self._run(
            "pg_basebackup", "-D", str(home / "data"), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync", source
        )

    def _tell_settings(self) -> None:
        """The copy brought the primary's along."""

    def catch_up(self) -> None:
        """It has replayed all that the primary had written when asked. Raises: PostgresFailed."""
        written = self.primary.sql("select pg_current_wal_lsn()")[0][0]
        replayed = f"select pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"
        _until(lambda: self.sql(replayed) == [["t"]], lambda: self._failed("did not catch up with its primary"))

    def detach(self) -> None:
        """Receives nothing any more: a failover that loses the last commits begins with this."""
        self.configure(primary_conninfo="")
        receivers = "select 1 from pg_stat_wal_receiver where status = 'streaming'"
        _until(lambda: not self.sql(receivers), lambda: self._failed("still receives"))

    def promote(self) -> None:
        """A primary from now on. Raises: PostgresFailed."""
        if self.sql("select pg_promote(true, 60)")[0][0] != "t":
            raise self._failed("was not promoted")


def _die_with_parent() -> None:
    if _LIBC:
        _LIBC.prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGINT))


def _until(true: Callable[[], bool], late: Callable[[], PostgresFailed]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise late()
        time.sleep(0.01)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []


def main() -> None:
    """A database to try hubs on: it prints what names it, serves until Ctrl-C, and keeps nothing."""
    for ends in (signal.SIGINT, signal.SIGTERM):  # a shell has what it starts with `&` ignore the first
        signal.signal(ends, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Server(durable=True) as server:
        print(f"export POINTSMAN_DSN='{server.dsn()}'", flush=True)
        while server.alive:
            time.sleep(0.5)


if __name__ == "__main__":
    main()
