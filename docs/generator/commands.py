"""The page of commands: what `--help` says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module

import click

from docs.generator.markdown import page
from kernel.cli import COMMANDS


def commands() -> str:
    parts = ["What `--help` says, for every command."]
    for name in COMMANDS:
        command = import_module(f"kernel.cli.{name}").command
        parts += [f"## {name}", *_help(command, f"pointsman {name}")]
    return page("Commands", "kernel/cli/", *parts)


def _help(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        yield _helped(command.help or "")
        for name in command.commands:
            yield from _help(command.commands[name], f"{path} {name}")
        return
    context = click.Context(command, info_name=path, max_content_width=100, terminal_width=100)
    yield f"```text\n{command.get_help(context)}\n```"


def _helped(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())
