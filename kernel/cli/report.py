"""`pointsman report`: an agent tells the hub what it does. Starts fast: agents call it often."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from kernel.cli.exits import Exit, exit_of_answer
from kernel.cli.options import Pair
from kernel.wire import ACTIVITIES, AGENT_TOKEN, PHASES

if TYPE_CHECKING:
    from kernel.cli.failure import CommandFailed

DEADLINE = 10.0
ATTEMPTS = 3
AGAIN = 0.5
"""Seconds before the next attempt; a hub that restarts is back soon."""
NEEDED = ("POINTSMAN_HUB", "POINTSMAN_TOKEN", "POINTSMAN_AGENT_ID", "POINTSMAN_RUN_ID")


@click.command("report")
@click.argument("activity", required=False, type=click.Choice(ACTIVITIES), metavar="[ACTIVITY]")
@click.option("--message", help="What there is to say about it.")
@click.option("--tool", help="The tool that is at work.")
@click.option("--task", help="The task in a few words.")
@click.option("--detail", "details", type=Pair(), multiple=True, help="A further detail; may be repeated.")
@click.option("--phase", type=click.Choice(PHASES), help="Seldom needed: the broker reports phases.")
def command(
    activity: str | None,
    message: str | None,
    tool: str | None,
    task: str | None,
    details: tuple[tuple[str, str], ...],
    phase: str | None,
) -> Exit:
    """Tell the hub what the agent around this process does.

    ACTIVITY is working, thinking, executing, waiting_for_input, blocked, completed, limits_exceeded or crashed.
    Works inside an agent, whose environment names the hub, the agent and its run.
    """
    named = {"message": message, "toolName": tool, "taskSummary": task}
    detail = {**dict(details), **{name: value for name, value in named.items() if value is not None}}
    told = {"phase": phase, "activity": activity, "detail": detail or None}
    body = {name: value for name, value in told.items() if value is not None}
    if not body:
        raise click.UsageError("nothing to report: give an ACTIVITY, or --message")
    _post(_surroundings(), body)
    return Exit.DONE


def _surroundings() -> dict[str, str]:
    """What the broker put into the agent's environment."""
    from kernel.cli.failure import CommandFailed

    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        fix = "run it inside an agent: the broker sets them for each one that it starts"
        raise CommandFailed(f"{', '.join(missing)} is not set: this is no agent", Exit.USAGE, fix=fix)
    return {name: os.environ[name] for name in NEEDED}


def _post(around: dict[str, str], body: dict[str, Any]) -> None:
    """The same report twice does no harm: what fails on the way is tried again."""
    import http.client

    failed: CommandFailed | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(AGAIN * attempt)
        try:
            status, text = _ask(around, body)
        except (OSError, http.client.HTTPException) as away:
            failed = _unreachable(around, away)
            continue
        if status < 400:
            return
        failed = _refused(status, text)
        if status not in (429, 503):
            break
    assert failed is not None
    raise failed


def _ask(around: dict[str, str], body: dict[str, Any]) -> tuple[int, bytes]:
    """Raises: OSError, HTTPException, CommandFailed."""
    import http.client
    import json
    from urllib.parse import quote, urlsplit

    from kernel.cli.failure import CommandFailed

    hub = urlsplit(around["POINTSMAN_HUB"])
    kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}.get(hub.scheme)
    if kind is None or not hub.hostname:
        raise CommandFailed(f"POINTSMAN_HUB is no URL of a hub: {around['POINTSMAN_HUB']}", Exit.MISCONFIGURED)
    token = around["POINTSMAN_TOKEN"]
    headers = {"Authorization": f"Bearer {token}", AGENT_TOKEN: token, "Content-Type": "application/json"}
    path = f"{hub.path.rstrip('/')}/api/v1/agents/{quote(around['POINTSMAN_AGENT_ID'], safe='')}/status"
    connection = kind(hub.hostname, hub.port, timeout=DEADLINE)
    try:
        connection.request("POST", path, json.dumps({"runId": around["POINTSMAN_RUN_ID"], **body}), headers)
        answer = connection.getresponse()
        return answer.status, answer.read(65_536)
    finally:
        connection.close()


def _unreachable(around: dict[str, str], away: Exception) -> CommandFailed:
    from kernel.cli.failure import Unreachable

    return Unreachable(f"the hub at {around['POINTSMAN_HUB']} cannot be reached: {away}")


def _refused(status: int, text: bytes) -> CommandFailed:
    import json

    from kernel.cli.failure import CommandFailed

    try:
        error = json.loads(text)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "", text.decode(errors="replace")[:200]
    return CommandFailed(f"the hub refused the report with {status}: {message}", exit_of_answer(status, code))
