"""What the command line makes of words: text of others, durations, addresses, logs that grow."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from kernel.cli import show
from kernel.cli.agent_logs import last_lines, news
from kernel.cli.connection import find_hub
from kernel.cli.exits import Exit
from kernel.cli.failure import CommandFailed
from kernel.cli.operation import Waiting
from kernel.cli.options import Deadline, Pair, seconds_of, waiting_of, with_wait_values
from kernel.cli.text import clean, clean_block, width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größe 日本 👩‍💻", "größe 日本 👩‍💻"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines", "two\\nlines"),
        ("\x9b31m", "\\x9b31m"),
        ("safe\u202egpj.exe", "safe\\u202egpj.exe"),
        ("half \udc80", "half \\udc80"),
        ("[red]not markup[/red]", "[red]not markup[/red]"),
    ],
)
def test_no_character_of_a_line_is_obeyed_by_a_terminal(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_a_log_keeps_lines_and_colours_and_nothing_else() -> None:
    text = "\x1b[31mred\x1b[0m\r\n\x1b]0;title\x07\tx"
    assert clean_block(text, colour=True) == "\x1b[31mred\x1b[0m\n\\x1b]0;title\\x07\tx\x1b[0m"
    assert clean_block(text, colour=False) == "red\n\\x1b]0;title\\x07\tx"


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("日本", 4), ("e\u0301", 1), ("", 0)])
def test_width_counts_columns_and_not_characters(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("250ms", 0.25), ("5s", 5), ("1.5m", 90), ("24h", 86_400), ("0", 0)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "5 s", "1e3", "nan", "5d"])
def test_other_words_are_no_durations(text: str) -> None:
    assert seconds_of(text) is None


@pytest.mark.parametrize(
    ("given", "header"),
    [("30", "30"), ("2m", "120"), ("250ms", "0.25"), ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z")],
)
def test_deadlines_become_what_the_header_takes(given: str, header: str) -> None:
    assert Deadline().convert(given, None, None) == header


@pytest.mark.parametrize("given", ["0", "soon", "2030-01-31T12:00:00", ""])
def test_deadlines_that_nobody_can_read_are_refused(given: str) -> None:
    with pytest.raises(click.BadParameter, match="neither a duration"):
        Deadline().convert(given, None, None)


def test_a_pair_without_a_value_takes_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "a=b")
    assert Pair().convert("OURS", None, None) == ("OURS", "a=b")
    assert Pair().convert("X=", None, None) == ("X", "")
    for wrong in ("=v", "CERTAINLY_NOT_SET"):
        with pytest.raises(click.BadParameter):
            Pair().convert(wrong, None, None)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["a", "--wait"], ["a", "--wait=usual"]),
        (["--wait", "30", "a"], ["--wait", "30", "a"]),
        (["--wait", "a", "hello"], ["--wait=usual", "a", "hello"]),
        (["a", "--", "--wait"], ["a", "--", "--wait"]),
        (["a", "--wait", "--", "5"], ["a", "--wait=usual", "--", "5"]),
    ],
)
def test_wait_takes_a_value_only_if_one_follows(given: list[str], read: list[str]) -> None:
    assert with_wait_values(given) == read


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(click.UsageError, match="--hold"):
        waiting_of(wait=None, hold=True, now=True, deadline=None)
    with pytest.raises(click.UsageError, match="--no-wait"):
        waiting_of(wait=5.0, no_wait=True, hold=False, now=False, deadline=None)


@pytest.mark.parametrize(
    ("waiting", "left", "prefer"),
    [
        (Waiting(), 50.0, "wait=50"),
        (Waiting(seconds=5.0), 5.0, "wait=5"),
        (Waiting(seconds=5.0), 0.2, "wait=1"),
        (Waiting(follow=False), 0.0, "respond-async"),
        (Waiting(delivery="hold"), 5.0, "deliver=hold, wait=5"),
        (Waiting(delivery="now", follow=False), 0.0, "deliver=now, respond-async"),
    ],
)
def test_preferences_say_how_long_the_hub_may_wait(waiting: Waiting, left: float, prefer: str) -> None:
    assert waiting.headers(left)["Prefer"] == prefer


# -- logs that grow ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ("", "a\n", "a\n"),
        ("a\n", "a\n", ""),
        ("a\n", "a\nb\n", "b\n"),
        ("a\nhal", "a\nhalf\n", "f\n"),
        ("tick\ntick\n", "tick\ntick\ntick\n", "tick\n"),
        ("a\nb\nc\n", "b\nc\nd\n", "d\n"),
        ("a\nb\n", "x\ny\n", "x\ny\n"),
        ("a\nb", "b\nc", "\nc"),
        ("first\nsecond\nthird\n", "st\nsecond\nthird\nfourth\n", "fourth\n"),
    ],
)
def test_only_what_was_not_there_before_is_news(before: str, now: str, new: str) -> None:
    assert news(before, now) == new


@pytest.mark.parametrize(
    ("text", "count", "last"),
    [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 1, "c"), ("a\n", 5, "a\n"), ("", 3, ""), ("\n\n", 1, "\n")],
)
def test_the_last_lines_are_counted_from_the_end(text: str, count: int, last: str) -> None:
    assert last_lines(text, count) == last


# -- times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("2030-01-01T11:59:58.500000Z", "2 s ago"),
        ("2030-01-01T12:00:30.000000Z", "in 30 s"),
        ("2030-01-01T11:00:00Z", "60 min ago"),
        ("2029-12-25T12:00:00Z", "7 d ago"),
        (None, "-"),
        ("yesterday", "-"),
    ],
)
def test_ages_are_told_in_the_unit_that_matters(at: Any, told: str) -> None:
    assert show.age(at, datetime(2030, 1, 1, 12, tzinfo=UTC)) == told


# -- where the hub is ----------------------------------------------------------------------------------------------


def _ready(folder: Path, **told: Any) -> Path:
    (folder / "var").mkdir()
    (folder / "var/ready.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "token": "kept", **told}))
    return folder


def test_the_ready_file_names_the_hub_where_nothing_else_does(tmp_path: Path) -> None:
    found = find_hub({}, _ready(tmp_path, pid=4))
    assert (found.url, found.token, found.pid, found.source) == ("http://127.0.0.1:1", "kept", 4, "var/ready.json")


def test_the_token_of_the_environment_wins(tmp_path: Path) -> None:
    assert find_hub({"POINTSMAN_TOKEN": "mine"}, _ready(tmp_path)).token == "mine"


def test_a_kept_token_goes_to_no_other_hub(tmp_path: Path) -> None:
    found = find_hub({"POINTSMAN_HUB": "https://elsewhere.example/"}, _ready(tmp_path))
    assert (found.url, found.token) == ("https://elsewhere.example", None)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "http://x:port", "http://[::1"])
def test_an_address_that_is_none_is_a_misconfiguration(url: str, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="not the address of a hub") as failed:
        find_hub({"POINTSMAN_HUB": url}, tmp_path)
    assert failed.value.exit_code == Exit.MISCONFIGURED


def test_a_token_that_no_header_may_carry_is_a_misconfiguration(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="token") as failed:
        find_hub({"POINTSMAN_HUB": "http://h", "POINTSMAN_TOKEN": "a\nb"}, tmp_path)
    assert failed.value.exit_code == Exit.MISCONFIGURED


def test_a_ready_file_that_is_broken_is_a_misconfiguration(tmp_path: Path) -> None:
    _ready(tmp_path)
    (tmp_path / "var/ready.json").write_text("{")
    with pytest.raises(CommandFailed, match="cannot be read") as failed:
        find_hub({}, tmp_path)
    assert failed.value.exit_code == Exit.MISCONFIGURED
