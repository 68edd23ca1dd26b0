"""The exit status of a command, and what is said on stderr when it ends badly."""

from __future__ import annotations

from collections.abc import Callable

import click
import pytest

from kernel import cli
from kernel.cli.exits import Exit, exit_of, exit_of_answer
from kernel.errors import (
    BrokerOffline,
    BrokerTimeout,
    Conflict,
    Forbidden,
    Misbehaved,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PointsmanError,
    RuntimeFailed,
    Unauthenticated,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Misconfigured("no"), 78),
        (Unauthenticated(), 77),
        (Forbidden(), 77),
        (NotFound(), 3),
        (Conflict(), 4),
        (BrokerOffline(), 5),
        (OutcomeUnknown(), 6),
        (BrokerTimeout(), 1),
        (RuntimeFailed(), 1),
        (Misbehaved(plugin="p", hook="h"), 1),
    ],
)
def test_each_way_of_failing_has_its_exit_status(error: PointsmanError, status: int) -> None:
    assert exit_of(error) == status
    assert exit_of(error.as_failure()) == (status if status != 78 else 1)


@pytest.mark.parametrize(
    ("status", "code", "exit_status"),
    [
        (200, "", 0),
        (202, "", 6),
        (404, "", 3),
        (413, "", 4),
        (429, "", 4),
        (503, "draining", 5),
        (504, "outcome_unknown", 6),
    ],
)
def test_each_answer_has_its_exit_status(status: int, code: str, exit_status: int) -> None:
    assert exit_of_answer(status, code) == exit_status


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Runs a function as a command and gives its exit status."""

    def run(body: Callable[[], object]) -> int:
        monkeypatch.setattr(cli, "pointsman", click.Command("test", callback=body))
        return cli.main([])

    return run


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> None:
        raise error

    return body


End = Callable[[Callable[[], object]], int]


def test_command_that_returns_nothing_is_done(ends: End) -> None:
    assert ends(lambda: None) == 0


def test_command_ends_with_what_it_returns(ends: End) -> None:
    assert ends(lambda: Exit.UNKNOWN) == 6


def test_error_of_ours_is_one_line_without_a_traceback(ends: End, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(raising(Misconfigured("set it"))) == 78
    assert capsys.readouterr().err == "error: set it\n"


def test_error_that_ended_a_task_group_is_told_like_any_other(ends: End, capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [Misconfigured("set it")])])
    assert ends(raising(group)) == 78
    assert capsys.readouterr().err == "error: set it\n"


def test_fault_in_a_task_group_keeps_its_traceback(ends: End) -> None:
    with pytest.raises(ExceptionGroup):
        ends(raising(ExceptionGroup("outer", [Misconfigured("set it"), ValueError("a fault")])))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupted_command_ends_with_130(ends: End, error: BaseException) -> None:
    assert ends(raising(error)) == 130


def test_wrong_use_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["no-such-command"]) == 2
    assert "No such command" in capsys.readouterr().err
