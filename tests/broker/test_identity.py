"""Registering, joining, and the commands `pointsman broker` and `pointsman report`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import pytest

from tests.broker.agents import Agent
from tests.broker.conftest import BrokerProcess
from tests.broker.fakehub import BROKER_ID, FakeHub
from tests.broker.registrar import JOINED, Registrar, registrar
from tests.harness.processes import ROOT, Child, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def http() -> Iterator[Registrar]:
    with registrar() as made:
        yield made


async def pointsman(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POINTSMAN_")}
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "kernel", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd,
            env={**clean, "PYTHONPATH": str(ROOT), **env},
            check=False,
        )
    )


OTHER = "http://127.0.0.1:9"
"""Another hub of the same database: dialled one day, asked nothing now."""


async def test_register_joins_and_keeps_the_identity_for_its_owner_alone(http: Registrar, tmp_path: Path) -> None:
    told = await pointsman(
        "broker", "register", "--hub", http.url, "--hub", OTHER, "--token", "t", "--name", "far", "--auto-provide",
        "--label", "zone=eu", "--dir", "b", cwd=tmp_path,
    )  # fmt: skip
    assert (told.returncode, told.stderr.count("pointsman broker run --dir b")) == (0, 1), told.stderr
    path = tmp_path / "b" / "identity.json"
    assert path.stat().st_mode & 0o777 == 0o600
    kept = json.loads(path.read_text())
    assert (kept["brokerId"], kept["secret"], kept["hubs"]) == (BROKER_ID, JOINED["secretKey"], [http.url, OTHER])
    (path1, headers, asked), (path2, _, joined) = http.asked
    assert (path1, headers["authorization"]) == ("/api/v1/brokers", "Bearer t")
    assert (asked["name"], asked["autoProvide"], asked["labels"]) == ("far", True, {"zone": "eu"})
    assert "dedupe" in asked["capabilities"]
    assert (path2, joined["brokerId"], joined["joinToken"]) == ("/api/v1/brokers/join", BROKER_ID, "scion_join_x")
    assert "secret" not in told.stdout.replace("its secret is in", "")


@pytest.mark.parametrize("command", [("register", "--name", "x", "--token", "t"), ("run",)])
async def test_what_is_no_url_of_a_hub_is_refused_and_not_dialled_for_ever(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    told = await pointsman("broker", *command, "--hub", "db.internal", cwd=tmp_path)
    assert (told.returncode, "such as http://127.0.0.1:8080" in told.stderr) == (2, True), told.stderr


@pytest.mark.parametrize(
    ("status", "code", "expected"), [(401, "unauthorized", 77), (403, "forbidden", 77), (400, "validation_error", 4)]
)
async def test_a_refused_registration_says_why(
    http: Registrar, tmp_path: Path, status: int, code: str, expected: int
) -> None:
    http.answers["/api/v1/brokers"] = [(status, {"error": {"code": code, "message": "because"}})]
    told = await pointsman("broker", "register", "--hub", http.url, "--token", "t", "--name", "x", cwd=tmp_path)
    assert told.returncode == expected
    assert "because" in told.stderr
    assert not (tmp_path / "var").exists()


async def test_registration_without_hub_or_token_says_what_to_do(tmp_path: Path) -> None:
    away = await pointsman(
        "broker", "register", "--hub", "http://127.0.0.1:9", "--token", "t", "--name", "x", cwd=tmp_path
    )
    assert (away.returncode, "cannot be reached" in away.stderr) == (5, True)
    unnamed = await pointsman("broker", "register", "--hub", "http://127.0.0.1:9", "--name", "x", cwd=tmp_path)
    assert (unnamed.returncode, "--token" in unnamed.stderr) == (2, True)
    never = await pointsman("broker", "run", cwd=tmp_path)
    assert (never.returncode, "pointsman broker register" in never.stderr) == (78, True)


async def test_broker_run_serves_until_it_is_told_to_stop(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    folder = str(idle_broker.dir)
    arguments = [sys.executable, "-m", "kernel", "broker", "run", "--dir", folder, "--hub", hub.url, "--stop-agents"]
    idle_broker.child = Child(arguments, idle_broker.folder / "broker.log", cwd=idle_broker.folder)
    await hub.line()
    assert hub.newest.connect["version"]
    agent = Agent(hub)
    assert (await agent.create()).status == 201
    assert await idle_broker.stop() == 0
    assert idle_broker.state(agent.id)["ended"]["exitCode"] == 143


async def test_a_broker_without_identity_registers_itself_as_soon_as_a_hub_is_there(
    http: Registrar, hub: FakeHub, idle_broker: BrokerProcess
) -> None:
    (idle_broker.dir / "identity.json").unlink()
    http.answers["/api/v1/brokers"] = [(503, {"error": {"code": "unavailable", "message": "later"}})]
    registration = {"token": "t", "name": "built-in", "auto_provide": True}
    await idle_broker.begin(hubs=[http.url, hub.url], registration=registration)
    names = [body["name"] for body in http.bodies("/api/v1/brokers")]
    assert names == ["built-in", "built-in", "built-in"], "refused once, taken, and again when its socket got 404"
    assert json.loads((idle_broker.dir / "identity.json").read_text())["name"] == "built-in"


async def test_a_broker_that_the_hub_deleted_joins_again(
    http: Registrar, hub: FakeHub, idle_broker: BrokerProcess
) -> None:
    registration = {"token": "t", "name": "built-in", "auto_provide": True}
    await idle_broker.begin(hubs=[hub.url], registration=registration)
    await hub.newest.ws.close(4410, "deleted")

    async def tried() -> bool:
        return "could not join again" in idle_broker.process.tail()

    await eventually(tried, "the broker to join again")
    await hub.line(1)


async def test_an_identity_that_cannot_be_read_is_told(hub: FakeHub, idle_broker: BrokerProcess) -> None:
    (idle_broker.dir / "identity.json").write_text("{")
    idle_broker.run()
    assert await idle_broker.process.ended() != 0
    assert "identity.json cannot be read" in idle_broker.process.tail()


AROUND = {"POINTSMAN_TOKEN": "jwt", "POINTSMAN_AGENT_ID": "a-1", "POINTSMAN_RUN_ID": "r-1"}


async def test_report_posts_the_status_of_the_run(http: Registrar, tmp_path: Path) -> None:
    http.answers["/api/v1/agents/a-1/status"] = [(503, {"error": {"code": "draining", "message": "later"}})]
    told = await pointsman(
        "report", "waiting_for_input", "--message", "größe?", "--tool", "ask", "--detail", "n=1",
        cwd=tmp_path, POINTSMAN_HUB=http.url, **AROUND,
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (0, ""), told.stderr
    path, headers, body = http.asked[-1]
    assert (path, len(http.asked)) == ("/api/v1/agents/a-1/status", 2)
    assert (headers["authorization"], headers["x-scion-agent-token"]) == ("Bearer jwt", "jwt")
    detail = {"n": "1", "message": "größe?", "toolName": "ask"}
    assert body == {"runId": "r-1", "activity": "waiting_for_input", "detail": detail}


async def test_report_fails_with_words(http: Registrar, tmp_path: Path) -> None:
    around = {"POINTSMAN_HUB": http.url, **AROUND}
    http.answers["/api/v1/agents/a-1/status"] = [(401, {"error": {"code": "unauthorized", "message": "no"}})]
    refused = await pointsman("report", "working", cwd=tmp_path, **around)
    assert (refused.returncode, "no" in refused.stderr) == (77, True)
    outside = await pointsman("report", "working", cwd=tmp_path)
    assert (outside.returncode, "POINTSMAN_HUB" in outside.stderr) == (2, True)
    nothing = await pointsman("report", cwd=tmp_path, **around)
    assert nothing.returncode == 2
    wrong = await pointsman("report", "dancing", cwd=tmp_path, **around)
    assert (wrong.returncode, "waiting_for_input" in wrong.stderr) == (2, True)
