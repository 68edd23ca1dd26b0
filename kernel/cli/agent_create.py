"""`pointsman agent create` and `agent env`: makes an agent, and asks for the values that it still needs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernel.cli import show
from kernel.cli.exits import Exit
from kernel.cli.failure import CommandFailed
from kernel.cli.options import (
    Pair,
    WaitingCommand,
    delivery_options,
    json_option,
    waiting_of,
    waiting_options,
)

if TYPE_CHECKING:
    from kernel.cli.client import Hub
    from kernel.cli.operation import Outcome, Waiting

Row = dict[str, Any]
Values = tuple[tuple[str, str], ...]


@click.command("create", cls=WaitingCommand)
@click.argument("name")
@click.argument("argv", metavar="[-- COMMAND ARGS…]", nargs=-1)
@click.option("--project", metavar="PROJECT", required=True, help="The project that it belongs to.")
@click.option("--broker", metavar="BROKER", help="Who runs it: id, name or slug; chosen by the hub otherwise.")
@click.option("--task", metavar="TEXT", help="What it is to work on.")
@click.option("--provision-only", is_flag=True, help="Prepare it and do not start it.")
@click.option("--config", "config_file", metavar="FILE|-", help="Its configuration, a JSON object; `-` reads it.")
@click.option(
    "--env", type=Pair(), multiple=True, help="A variable of its environment (NAME alone: yours); may be repeated."
)
@click.option("--label", "labels", type=Pair(), multiple=True, help="A label; may be repeated.")
@waiting_options
@delivery_options
@json_option
def create(
    name: str,
    argv: tuple[str, ...],
    project: str,
    broker: str | None,
    task: str | None,
    provision_only: bool,
    config_file: str | None,
    env: Values,
    labels: Values,
    as_json: bool,
    **options: Any,
) -> Exit:
    """Make an agent and start it. What follows `--` is the command that it runs.

    \b
    pointsman agent create worker --project demo -- python3 worker.py
    """
    from kernel.cli.client import talk

    waiting = waiting_of(**options)
    config = _config(config_file, dict(env), argv)
    asked = {
        "name": name,
        "runtimeBrokerId": broker,
        "task": task,
        "provisionOnly": provision_only or None,
        "config": config or None,
        "labels": dict(labels) or None,
        "gatherEnv": True,
    }
    body = {key: value for key, value in asked.items() if value is not None}
    outcome = talk(lambda hub: _create(hub, project, body, waiting, as_json), as_json=as_json)
    return _supplied(outcome, dict(env), waiting, as_json)


@click.command("env", cls=WaitingCommand)
@click.argument("agent")
@click.argument("values", metavar="NAME=VALUE…", nargs=-1, required=True, type=Pair())
@waiting_options
@delivery_options
@json_option
def give_env(agent: str, values: Values, as_json: bool, **options: Any) -> Exit:
    """Give an agent the values that its creation still waits for. They are not stored."""
    from kernel.cli.client import talk

    waiting = waiting_of(**options)

    async def supply(hub: Hub) -> Outcome:
        from kernel.cli.names import agent_named

        row = await agent_named(hub, agent)
        return await _supply(hub, row, dict(values), waiting, as_json)

    return _supplied(talk(supply, as_json=as_json), dict(values), waiting, as_json)


def _config(file: str | None, env: Mapping[str, str], argv: tuple[str, ...]) -> Row:
    config = _read_config(file) if file else {}
    if env:
        config["env"] = {**(config.get("env") or {}), **env}
    if argv:
        config["command"] = list(argv)
    try:
        str(config).encode()
    except UnicodeEncodeError as wrong:
        raise click.UsageError("an argument is not UTF-8 text: give it with --config FILE") from wrong
    return config


def _read_config(file: str) -> Row:
    import msgspec

    where = "standard input" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        config = msgspec.json.decode(raw, type=dict[str, Any])
    except OSError as unreadable:
        raise click.UsageError(f"--config: {where} cannot be read: {unreadable.strerror}") from unreadable
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise click.UsageError(f"--config: {where} must hold one JSON object: {wrong}") from wrong
    if not isinstance(config.get("env", {}), dict | None):
        raise click.UsageError(f"--config: `env` in {where} must be an object of names and values")
    return config


async def _create(hub: Hub, project: str, body: Row, waiting: Waiting, as_json: bool) -> Outcome:
    from kernel.cli.client import Change, encode
    from kernel.cli.names import project_named
    from kernel.cli.operation import Wish, carry_out

    project_id = (await project_named(hub, project))["id"]
    change = Change(method="POST", path="/agents", body=encode({**body, "projectId": project_id}))
    wish = Wish(what=f"create {body['name']}", op="create", change=change, project_id=project_id)
    try:
        outcome = await carry_out(hub, wish, waiting, silent=as_json)
    except CommandFailed as failed:
        if "config.command" in failed.message and "command" not in body.get("config", {}):
            failed.fix = f"give it after `--`: `pointsman agent create {body['name']} … -- COMMAND ARGS…`"
        raise
    return await _with_agent(hub, outcome)


async def _supply(hub: Hub, row: Row, values: Mapping[str, str], waiting: Waiting, as_json: bool) -> Outcome:
    from kernel.cli.client import Change, encode
    from kernel.cli.names import path_of
    from kernel.cli.operation import Wish, carry_out

    change = Change(method="POST", path=path_of("agents", row["id"], "env"), body=encode({"env": dict(values)}))
    wish = Wish(what=f"env of {row['slug']}", op="finalize_env", change=change, agent_id=row["id"])
    return await _with_agent(hub, await carry_out(hub, wish, waiting, silent=as_json))


async def _with_agent(hub: Hub, outcome: Outcome) -> Outcome:
    """Where the end was followed: the document that the answer would have been, had it come in time."""
    import msgspec

    from kernel.cli.names import path_of

    if outcome.dispatch is None:
        return outcome
    agent = await hub.get(path_of("agents", outcome.dispatch["agentId"]))
    document = {"agent": agent, **({"envGather": gather} if (gather := _needs(outcome.dispatch)) else {})}
    return msgspec.structs.replace(outcome, answer=msgspec.structs.replace(outcome.answer, document=document))


def _needs(dispatch: Row) -> Row | None:
    """What a broker asked for, in the reply that the dispatch keeps."""
    result = dispatch.get("result")
    return result if isinstance(result, dict) and (result.get("needs") or result.get("required")) else None


def _supplied(outcome: Outcome, given: Mapping[str, str], waiting: Waiting, as_json: bool) -> Exit:
    """Asks for what is missing until nothing is, then shows the agent."""
    from kernel.cli.client import talk

    asked: set[str] = set()
    while not outcome.stored and (missing := _missing(outcome)):
        agent = outcome.answer.document["agent"]
        values = {name: given[name] for name in missing if name in given and name not in asked}
        values.update(_prompted([name for name in missing if name not in values], agent, outcome, as_json))
        asked.update(values)
        outcome = talk(lambda hub: _supply(hub, agent, values, waiting, as_json), as_json=as_json)  # noqa: B023
    _show(outcome, as_json)
    return Exit.DONE


def _missing(outcome: Outcome) -> list[str]:
    gather = outcome.answer.document.get("envGather") or {}
    return [str(name) for name in gather.get("needs") or gather.get("required") or []]


def _prompted(names: list[str], agent: Row, outcome: Outcome, as_json: bool) -> dict[str, str]:
    """Values from the person at the terminal, not echoed. Raises: CommandFailed when there is no terminal."""
    if not names:
        return {}
    if as_json or not sys.stdin.isatty():
        if as_json:
            show.document(outcome.answer.document)
        raise CommandFailed(
            f"{agent['slug']} still needs {', '.join(names)}",
            Exit.REFUSED,
            fix=f"`pointsman agent env {agent['id']} {' '.join(f'{name}=…' for name in names)}` lets it go on",
        )
    show.note(f"{agent['slug']} needs {len(names)} more")
    return {name: click.prompt(show.cell(name), hide_input=True, err=True) for name in names}


def _show(outcome: Outcome, as_json: bool) -> None:
    from kernel.cli.operation import tell_stored

    document = outcome.answer.document
    if as_json:
        show.document(document)
        return
    for warning in (document or {}).get("warnings") or []:
        show.note(f"warning: {warning}")
    if outcome.stored:
        tell_stored(outcome, "create")
        return
    agent = document["agent"]
    show.say(f"{agent['slug']} {agent['phase']} ({agent['id']})")
