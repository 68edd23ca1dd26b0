"""The log of an agent: rotated by size, read from its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.keeping.agentlog import AgentLog, last_lines
from tests.broker.agents import Agent
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import FakeHub
from tests.broker.sharing import broker, hub, shared

__all__ = ["broker", "hub", "shared"]


SETTINGS = {"log_bytes": 20_000, "log_files": 2}


@pytest.mark.anyio
async def test_logs_are_text_of_the_last_lines(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create("for n in range(2000): print('línea', n)\nimport sys; sys.stdout.flush(); input()")
    await agent.logged("línea 1999")
    assert await agent.log(tail=2) == "línea 1998\nlínea 1999\n"
    assert (await agent.log(tail=0)) == ""
    default = await hub.ask("GET", f"/api/v1/agents/{agent.slug}/logs")
    assert default.headers["Content-Type"].startswith("text/plain")
    assert default.body.decode().count("\n") == 1000
    wrong = await hub.ask("GET", f"/api/v1/agents/{agent.slug}/logs", query={"tail": "many"})
    assert wrong.status == 400


@pytest.mark.anyio
async def test_a_log_is_rotated_while_the_agent_runs_and_outlives_its_run(hub: FakeHub, broker: BrokerProcess) -> None:
    agent = Agent(hub)
    await agent.create("for n in range(30000): print('line', n)\nprint('end', flush=True)\ninput()")
    await agent.logged("end")
    sizes = {file.name: file.stat().st_size for file in (broker.dir / "agents" / agent.id).glob("log*")}
    assert set(sizes) == {"log", "log.1", "log.2"}
    assert max(sizes.values()) <= 66_000
    await agent.post("stop")
    await agent.start()
    log = await agent.logged("begun")
    assert log.index("end\n") < log.index("begun")


def test_rotation_keeps_the_newest_parts(tmp_path: Path) -> None:
    log = AgentLog(tmp_path / "log", limit=100, files=2)
    for n in range(40):
        log.write(f"line {n:02d}, of some length\n".encode())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert last_lines(tmp_path / "log", 2, 1, 10_000) == b"line 39, of some length\n"
    assert last_lines(tmp_path / "log", 2, 6, 10_000).count(b"\n") == 6
    assert last_lines(tmp_path / "log", 2, 1_000, 30) == b" 38, of some length\n"[-6:] + b"line 39, of some length\n"


def test_a_status_may_come_in_pieces_and_overlong_lines_are_none(tmp_path: Path) -> None:
    log = AgentLog(tmp_path / "log", limit=10**6, files=1)
    assert log.write(b"::stat") == []
    assert log.write(b'us {"activity"') == []
    assert log.write(b': "working"}\n::status {"a": 1, "detail": "x"}\nplain\n') == [
        {"activity": "working"},
        {"detail": "x"},
    ]
    assert log.write(b"::status " + b"x" * 100_000) == []
    assert log.write(b'{"activity": "no"}\n::status {"activity": "yes"}\n') == [{"activity": "yes"}]
    assert log.tail() == "plain"


def test_a_status_that_would_harm_its_readers_is_none(tmp_path: Path) -> None:
    log = AgentLog(tmp_path / "log", limit=10**6, files=1)
    deep = b'{"detail": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    for bad in (b'{"detail": "\\ud800"}', b'{"detail": NaN}', deep, b"7"):
        assert log.write(b"::status " + bad + b"\n") == [], bad[:40]


def test_the_tail_is_bounded_and_holds_no_statuses(tmp_path: Path) -> None:
    log = AgentLog(tmp_path / "log", limit=10**7, files=1)
    log.write(b"first\n::status {}\n" + b"".join(b"%d\n" % n for n in range(100)) + b"unended")
    assert log.tail().splitlines() == [*(str(n) for n in range(80, 100)), "unended"]
    log.write(b"\n" + b"y" * 50_000)
    assert len(log.tail()) == 4096


def test_a_full_disk_costs_the_text_and_never_the_agent(tmp_path: Path) -> None:
    log = AgentLog(Path("/dev/full"), limit=10**6, files=1)
    assert log.write(b'::status {"activity": "working"}\n') == [{"activity": "working"}]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "log", 3, 10, 100) == b""
