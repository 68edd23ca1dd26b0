"""The command line: one file a group of commands, each imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from kernel.cli.exits import Exit, exit_of
from kernel.cli.failure import innermost
from kernel.errors import PointsmanError

COMMANDS: dict[str, str] = {
    "serve": "Run a hub until Ctrl-C.",
    "agent": "Create, start, stop and talk to agents.",
    "dispatch": "What became of an operation, and why it still waits.",
    "broker": "Register, run and look at brokers.",
    "node": "The hubs that live, and taking one out of service.",
    "project": "The projects that agents belong to.",
    "report": "Tell the hub what the agent around this process does.",
    "plugins": "What is plugged in, and whether a plugin fits.",
    "db": "Migrate and check the database.",
    "doctor": "Find what would keep a hub from starting, before it is started.",
}
"""Name → what `pointsman --help` says. `kernel/cli/<name>.py` holds it as `command`, imported at its first use."""


class LazyGroup(click.Group):
    """Lists its commands without importing them: the start of a command costs what that command needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"kernel.cli.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"kernel.cli.{cmd_name}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pointsman", prog_name="pointsman", message="%(prog)s %(version)s")
def pointsman() -> None:
    """Sets the switch so that each command finds its broker."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status.

    A command returns an `Exit`, or nothing when it is done. It lets errors of the kernel pass: their message goes
    to stderr, and `exit_of` gives the status.
    """
    try:
        outcome = pointsman.main(args=arguments, prog_name="pointsman", standalone_mode=False)
    except click.Abort:
        return Exit.INTERRUPTED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except click.ClickException as mistake:
        mistake.show()
        return mistake.exit_code
    except PointsmanError as error:
        return _failed(error)
    except BaseExceptionGroup as group:
        known = _known(group)
        if known is None:
            raise
        return _failed(known)
    return outcome if isinstance(outcome, int) else Exit.DONE


def _failed(error: PointsmanError) -> Exit:
    print(f"error: {error.message}", file=sys.stderr)
    return exit_of(error)


def _known(group: BaseExceptionGroup[BaseException]) -> PointsmanError | None:
    """The error of ours that ended a task group, if nothing else went wrong in it."""
    ours, others = group.split(PointsmanError)
    if ours is None or others is not None:
        return None
    first = innermost(ours)
    return first if isinstance(first, PointsmanError) else None
