"""`pointsman agent message`: says something to an agent, now or when it can take it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from kernel.cli import show
from kernel.cli.options import Duration, WaitingCommand, asks_hub, delivery_options, json_option, waiting_of

if TYPE_CHECKING:
    from kernel.cli.client import Hub


@click.command("message", cls=WaitingCommand)
@click.argument("agent")
@click.argument("words", metavar="TEXT…|-", nargs=-1, required=True)
@click.option("--interrupt", is_flag=True, help="Interrupt what the agent does now.")
@click.option(
    "--wait", type=Duration(), metavar="[DURATION]", help="Wait until the broker took it, so long (usual: 2m)."
)
@delivery_options
@json_option
@asks_hub
async def message(
    hub: Hub,
    agent: str,
    words: tuple[str, ...],
    interrupt: bool,
    wait: float | str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Send a message to an agent; `-` reads it from standard input.

    It is kept until the agent can take it; --wait waits until the broker acknowledged it.
    """
    from kernel.cli.client import Change, encode
    from kernel.cli.names import agent_named, path_of
    from kernel.cli.operation import Wish, carry_out

    text = _read_stdin() if words == ("-",) else " ".join(words)
    row = await agent_named(hub, agent)
    body = {"message": _utf8(text), **({"interrupt": True} if interrupt else {})}
    change = Change(method="POST", path=path_of("agents", row["id"], "message"), body=encode(body))
    wish = Wish(what=f"message to {row['slug']}", op="message", change=change, agent_id=row["id"])
    waiting = waiting_of(wait=wait, no_wait=wait is None, **options)
    outcome = await carry_out(hub, wish, waiting, silent=as_json)
    told = dict(outcome.answer.document)
    if outcome.dispatch:
        told["dispatchState"] = outcome.dispatch["state"]
    if as_json:
        show.document(told)
    else:
        show.say(f"message {told['messageId']}: {told['dispatchState']}")


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
