"""`pointsman plugins`: what a configuration lists, what a plugin is, and what to put right in one's own."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from kernel import cli
from kernel.cli.exits import Exit
from tests.harness.command_line import pointsman
from tests.harness.scripted_hub import TOKEN, Reply, ScriptedHub

GOOD = """
'''Keeps to one region.

More about it.'''

import msgspec
from kernel import Duration, Route, RouteAdvice, hookimpl

class Plugin:
    name = "mine"
    api = 1

    class Config(msgspec.Struct, frozen=True, kw_only=True):
        region: str
        every: Duration = 90.0
        pauses: tuple[Duration, ...] = (0.25, 1.0)

    def __init__(self, config):
        self.region = config.region

    @hookimpl
    def rank_route(self, request):
        if request.labels.get("region") == self.region:
            return RouteAdvice(route=Route.REFUSE, reason="not here")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POINTSMAN_CONFIG", "hub.yaml")
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "hub.yaml").write_text(
        textwrap.dedent(
            """
            plugins:
              - {use: sqlite, config: {path: var/hub.db}}
              - {use: routes.local}
              - {use: ./mine.py, before: [routes.local], config: {region: eu}}
              - {use: metrics.log, enabled: false}
            """
        )
    )
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["plugins", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    _, out, _ = run(capsys, *arguments, "--json")
    return json.loads(out)


# -- list ----------------------------------------------------------------------------------------------------


def test_list_shows_what_is_on_in_the_order_of_asking(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "list")
    assert (status, err) == (Exit.DONE, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[:3] for line in lines[:5]] == [
        ["NAME", "STATE", "USE"],
        ["sqlite", "on", "sqlite"],
        ["mine", "on", "./mine.py"],
        ["routes.local", "on", "routes.local"],
        ["metrics.log", "disabled", "metrics.log"],
    ]
    assert ["routes.hold", "unlisted", "routes.hold"] in [line[:3] for line in lines]


def test_list_tells_where_each_comes_from_and_what_it_implements(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["use"]: row for row in document(capsys, "list")["plugins"]}
    assert rows["./mine.py"] == {
        "name": "mine",
        "use": "./mine.py",
        "origin": "mine.py",
        "state": "on",
        "hooks": ["rank_route"],
        "reason": "",
    }
    assert rows["metrics.log"]["reason"] == "enabled: false"
    assert rows["sqlite"]["origin"].startswith("pointsman ")


def test_list_shows_the_rest_although_one_is_broken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text("1 / 0")
    status, out, err = run(capsys, "list")
    assert status == Exit.MISCONFIGURED
    assert "broken" in out
    assert "routes.local" in out
    assert "hub.yaml:5:11: plugins../mine.py.use: expected a plugin, found that importing mine.py raised" in err


def test_list_in_safe_mode_leaves_out_what_others_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text("1 / 0")
    status, out, _ = run(capsys, "list", "--safe-mode")
    assert status == Exit.DONE
    assert "safe mode" in out


def test_list_takes_settings_as_serve_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = document(capsys, "list", "--set", "plugins.mine.enabled=false")["plugins"]
    assert next(row["state"] for row in rows if row["use"] == "./mine.py") == "disabled"


def test_mistakes_in_the_configuration_end_with_78(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "hub.yaml").write_text("node: {beet: 1s}\nsweep: {stuck: 5}\n")
    status, _, err = run(capsys, "list")
    assert status == Exit.MISCONFIGURED
    assert "hub.yaml:1:8: node.beet: expected a known setting, found beet: did you mean beat?" in err
    assert "hub.yaml:2:16: sweep.stuck: expected a duration" in err


# -- show ----------------------------------------------------------------------------------------------------


def test_show_tells_hooks_and_configuration(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "show", "mine")
    assert told["promise"] == "Keeps to one region."
    assert told["hooks"] == [{"hook": "rank_route", "kind": "first", "async": False, "takes": ["request"]}]
    assert told["config"] == [
        {"key": "region", "expected": "text", "default": "required", "now": "eu"},
        {
            "key": "every",
            "expected": "a duration such as 250ms, 5s, 2m or 24h",
            "default": "90s",
            "now": "90s",
        },
        {"key": "pauses", "expected": "a list as `[a, b]`", "default": ["250ms", "1s"], "now": ["250ms", "1s"]},
    ]
    status, out, _ = run(capsys, "show", "./mine.py")
    assert status == Exit.DONE
    assert out.splitlines()[0] == "plugin mine"


def test_show_takes_one_that_is_not_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "show", "environment.static")["hooks"][0]["hook"] == "resolve_environment"


def test_show_of_what_is_not_there_ends_with_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "show", "routes.locl")
    assert status == Exit.NOT_FOUND
    assert "did you mean routes.local?" in err


def test_show_of_a_disabled_plugin_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "show", "metrics.log")
    assert (status, err) == (Exit.NOT_FOUND, "metrics.log is not loaded: enabled: false\n")


def test_show_of_a_broken_plugin_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(GOOD.replace("rank_route", "rank_rout"))
    status, _, err = run(capsys, "show", "./mine.py")
    assert status == Exit.MISCONFIGURED
    assert "did you mean rank_route?" in err


# -- check ---------------------------------------------------------------------------------------------------


def test_good_strategy_passes_every_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "check", "./mine.py", "--set", "region=eu")
    assert told["ok"], told
    assert "it reads nothing but the request" in [check["check"] for check in told["checks"]]
    status, out, err = run(capsys, "check", "./mine.py", "--set", "region=eu")
    assert (status, err) == (Exit.DONE, "")
    assert all(line.startswith("ok ") for line in out.splitlines())


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            "def rank_route",
            "async def rank_route",
            "expected `def rank_route`, found async def: it must answer at once",
        ),
        ("request):", "question):", "expected arguments among request, found question: did you mean request?"),
        ("api = 1", "api = 2", "expected `api = 1`, found 2"),
        ("request):\n", "request):\n        __import__('random').random()\n", "it called random."),
        ("request):\n", "request):\n        __import__('time').sleep(0.12)\n", "it took more than breaker.slow"),
        (
            'if request.labels.get("region") == self.region:\n            return RouteAdvice(route=Route.REFUSE',
            "if True:\n            return RouteAdvice(route=Route.LOCAL",
            "which the request contradicts",
        ),
        ('request.labels.get("region") == self.region', "1 / 0", "ZeroDivisionError"),
        ("self.region = config.region", "raise OSError('no disk')", "building it raised OSError: no disk"),
    ],
)
def test_check_says_what_to_put_right(
    folder: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, told: str
) -> None:
    (folder / "mine.py").write_text(GOOD.replace(before, after))
    status, out, _ = run(capsys, "check", "./mine.py", "--set", "region=eu")
    assert status == Exit.MISCONFIGURED
    assert any(line.startswith("FIX ") and told in line for line in out.splitlines()), out


def test_check_without_a_value_that_it_needs_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "check", "./mine.py")
    assert status == Exit.MISCONFIGURED
    assert "expected a value, found nothing" in out


def test_check_of_what_is_not_there_ends_with_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "check", "./nowhere.py")
    assert status == Exit.NOT_FOUND
    assert "found no file nowhere.py" in err


def test_check_of_another_kind_of_plugin_stops_at_whether_it_fits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [check["ok"] for check in document(capsys, "check", "metrics.log")["checks"]] == [True, True]


# -- as people start it --------------------------------------------------------------------------------------


def test_installed_command_works_from_any_folder(tmp_path: Path) -> None:
    ran = pointsman("plugins", "list", "--json", cwd=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out)["plugins"][0]["use"] == "sqlite"
    assert not list(tmp_path.iterdir())


def test_running_shows_who_is_switched_off_and_what_each_hook_costs(tmp_path: Path) -> None:
    bad = {"hook": "rank_route", "calls": 5, "seconds": 0.00005, "faults": 5, "lastFault": "raised ValueError: x"}
    rows = [
        {"name": "bad", "state": "switched_off", "reason": "5 faults within 60 s", "hooks": [bad]},
        {"name": "idle", "state": "disabled", "reason": "enabled: false", "hooks": []},
    ]
    with ScriptedHub().running() as hub:
        hub.on("GET", "/plugins", Reply(document={"plugins": rows}))
        where = {"POINTSMAN_HUB": hub.url, "POINTSMAN_TOKEN": TOKEN}
        ran = pointsman("plugins", "running", cwd=tmp_path, extra=where)
        told = pointsman("plugins", "running", "--json", cwd=tmp_path, extra=where)
    assert ran.status == told.status == 0
    assert [line.split() for line in ran.out.splitlines()][1:] == [
        ["bad", "switched_off", "rank_route", "5", "10.0", "5", "raised", "ValueError:", "x"],
        ["idle", "disabled", "-", "-", "-", "-", "enabled:", "false"],
    ]
    assert json.loads(told.out) == {"plugins": rows}
