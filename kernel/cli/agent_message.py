"""`pointsman agent message`: says something to an agent, now or when it can take it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from kernel.cli import show
from kernel.cli.options import Duration, WaitingCommand, asks_hub, delivery_options, json_option, waiting_of
from kernel.clock import is_uuid

if TYPE_CHECKING:
    from kernel.cli.client import Hub
    from kernel.cli.exits import Exit
    from kernel.cli.operation import Waiting


@click.command("message", cls=WaitingCommand)
@click.argument("words", metavar="AGENT[,AGENT…] TEXT…|-", nargs=-1, required=True)
@click.option("--project", metavar="PROJECT", help="Where the agents are looked up.")
@click.option("--all", "everyone", is_flag=True, help="To every agent of --project: no AGENT is named then.")
@click.option("--interrupt", is_flag=True, help="Interrupt what the agent does now.")
@click.option(
    "--wait", type=Duration(), metavar="[DURATION]", help="Wait until the broker took it, so long (usual: 2m)."
)
@delivery_options
@json_option
@asks_hub
async def message(
    hub: Hub,
    words: tuple[str, ...],
    project: str | None,
    everyone: bool,
    interrupt: bool,
    wait: float | str | None,
    as_json: bool,
    **options: Any,
) -> Exit | None:
    """Send a message to an agent, to several (worker,helper), or to all of a project; `-` reads it from standard input.

    It is kept until the agent can take it; --wait waits until the broker acknowledged it.
    """
    names, said = _split(words, project, everyone)
    text = _read_stdin() if said == ("-",) else " ".join(said)
    body = {"message": _utf8(text), **({"interrupt": True} if interrupt else {})}
    waiting = waiting_of(wait=wait, no_wait=wait is None, **options)
    if everyone:
        return await _to_all(hub, str(project), body, waiting, as_json)
    if len(names) > 1:
        return await _to_several(hub, names, body, waiting, as_json)
    await _to_one(hub, names[0], body, waiting, as_json)
    return None


def _split(words: tuple[str, ...], project: str | None, everyone: bool) -> tuple[list[str], tuple[str, ...]]:
    """Whom it is for, and what is said."""
    if everyone:
        if project is None:
            raise click.UsageError("--all needs the project whose agents are meant: --project PROJECT")
        return [], words
    if len(words) < 2:
        raise click.UsageError("Missing argument 'TEXT…|-'.")
    before = f"{project}/" if project else ""
    named = [name.strip() for name in words[0].split(",")]
    names = [name if "/" in name or is_uuid(name) else before + name for name in named if name]
    if not names:
        raise click.UsageError("name the agent, or --all --project PROJECT for every one of a project")
    return names, words[1:]


async def _to_one(hub: Hub, name: str, body: dict[str, Any], waiting: Waiting, as_json: bool) -> None:
    from kernel.cli.client import Change, encode
    from kernel.cli.names import agent_named, path_of
    from kernel.cli.operation import Wish, carry_out

    row = await agent_named(hub, name)
    change = Change(method="POST", path=path_of("agents", row["id"], "message"), body=encode(body))
    wish = Wish(what=f"message to {row['slug']}", op="message", change=change, agent_id=row["id"])
    outcome = await carry_out(hub, wish, waiting, silent=as_json)
    told = dict(outcome.answer.document)
    if outcome.dispatch:
        told["dispatchState"] = outcome.dispatch["state"]
    if as_json:
        show.document(told)
    else:
        show.say(f"message {told['messageId']}: {told['dispatchState']}")


async def _to_several(hub: Hub, names: list[str], body: dict[str, Any], waiting: Waiting, as_json: bool) -> Exit:
    from kernel.cli.client import Change, encode
    from kernel.cli.fanout import say_to_many
    from kernel.cli.names import agent_named

    ids = [(await agent_named(hub, name))["id"] for name in names]
    messages = [{"agentId": agent_id, **body} for agent_id in dict.fromkeys(ids)]
    change = Change(method="POST", path="/messages/batch", body=encode({"messages": messages}))
    return await say_to_many(hub, change, waiting, as_json=as_json)


async def _to_all(hub: Hub, project: str, body: dict[str, Any], waiting: Waiting, as_json: bool) -> Exit:
    from kernel.cli.client import Change, encode
    from kernel.cli.fanout import say_to_many
    from kernel.cli.names import path_of, project_named

    row = await project_named(hub, project)
    change = Change(method="POST", path=path_of("projects", row["id"], "broadcast"), body=encode(body))
    return await say_to_many(hub, change, waiting, as_json=as_json)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as wrong:
        raise click.UsageError(f"standard input is not UTF-8 text: {wrong}") from wrong


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as wrong:
        raise click.UsageError("the text is not UTF-8: send it through standard input, with `-`") from wrong
    return text
