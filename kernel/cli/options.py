"""The options that several commands share: `--json`, how long to wait, durations, NAME=VALUE pairs."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from kernel.cli.exits import Exit

F = TypeVar("F", bound=Callable[..., Any])
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
USUAL_WAIT = "usual"
"""What `--wait` without a value stands for."""


def seconds_of(text: str) -> float | None:
    """`30`, `250ms`, `5s`, `2m`, `24h` in seconds; None for anything else."""
    found = DURATION.fullmatch(text.strip())
    return float(found[1]) * UNITS[found[2]] if found else None


class Duration(click.ParamType[Any]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == USUAL_WAIT or isinstance(value, float):
            return value
        seconds = seconds_of(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no duration: write 30, 250ms, 5s, 2m or 24h", param, ctx)
        return seconds


class Deadline(click.ParamType[Any]):
    """A duration from now, or an instant in RFC 3339; given as the header takes it."""

    name = "deadline"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from datetime import datetime

        text = str(value).strip()
        seconds = seconds_of(text)
        if seconds and seconds >= 0.001:
            return f"{seconds:.3f}".rstrip("0").rstrip(".")
        try:
            at = datetime.fromisoformat(text) if seconds is None else None
        except ValueError:
            at = None
        if at is None or at.tzinfo is None:
            self.fail(f"{text!r} is neither a duration (30s, 2m) nor a time like 2026-01-31T12:00:00Z", param, ctx)
        return text


class Pair(click.ParamType[Any]):
    """`NAME=VALUE`, or `NAME` for the value that this command's own environment has."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, given = str(value).partition("=")
        if not name:
            self.fail(f"{value!r} has no name: write NAME=VALUE", param, ctx)
        if not equals and name not in os.environ:
            self.fail(f"{name} is not set in this environment: write {name}=VALUE", param, ctx)
        return name, given if equals else os.environ[name]


class WaitingCommand(click.Command):
    """Lets `--wait` stand alone: what follows is its value only if it is a duration."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_wait_values(args))


def with_wait_values(args: list[str]) -> list[str]:
    plain = args.index("--") if "--" in args else len(args)
    given = []
    for n, argument in enumerate(args):
        alone = argument == "--wait" and n < plain and (n + 1 >= plain or seconds_of(args[n + 1]) is None)
        given.append(f"--wait={USUAL_WAIT}" if alone else argument)
    return given


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="The hub's JSON, and nothing else.")(command)


def delivery_options(command: F) -> F:
    """`--hold`, `--now` and `--deadline`; arrive as `hold`, `now`, `deadline`."""
    options = (
        click.option("--hold", is_flag=True, help="If nobody holds the broker: store it until it is back."),
        click.option("--now", is_flag=True, help="Refuse it unless the broker is here; it has 30 s."),
        click.option(
            "--deadline",
            type=Deadline(),
            metavar="WHEN",
            help="Past it nothing is sent: 30s, 2m, or 2026-01-31T12:00:00Z.",
        ),
    )
    return _stacked(command, options)


def waiting_options(command: F) -> F:
    """How long to wait for the outcome; needs `cls=WaitingCommand`. Arrive as `wait` and `no_wait`."""
    options = (
        click.option(
            "--wait",
            type=Duration(),
            metavar="[DURATION]",
            help="How long to wait for the outcome: 30, 5s, 2m (usual: 2m).",
        ),
        click.option("--no-wait", is_flag=True, help="Return as soon as it is durable."),
    )
    return _stacked(command, options)


def _stacked(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def waiting_of(*, wait: float | str | None, no_wait: bool = False, hold: bool, now: bool, deadline: str | None) -> Any:
    """The `Waiting` that the options ask for. Raises: click.UsageError for those that contradict."""
    from kernel.cli.operation import Waiting

    if hold and now:
        raise click.UsageError("--hold stores it for later and --now refuses that: give one of them")
    if no_wait and wait is not None:
        raise click.UsageError("--wait and --no-wait contradict: give one of them")
    return Waiting(
        seconds=wait if isinstance(wait, float) else None,
        follow=not no_wait,
        delivery="hold" if hold else "now" if now else None,
        deadline=deadline,
    )


def asks_hub(body: Callable[..., Awaitable[Exit | None]]) -> Callable[..., Exit]:
    """Makes a command of a conversation with the hub: `body` gets the hub first. Imports HTTP only when it runs."""

    @functools.wraps(body)
    def command(**options: Any) -> Exit:
        from kernel.cli.client import talk

        outcome = talk(lambda hub: body(hub, **options), as_json=bool(options.get("as_json")))
        return outcome if outcome is not None else Exit.DONE

    return command
