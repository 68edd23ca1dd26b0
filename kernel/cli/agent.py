"""`pointsman agent`: create, start, stop and talk to agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kernel.cli import show
from kernel.cli.agent_create import create, give_env
from kernel.cli.agent_logs import logs
from kernel.cli.agent_message import message
from kernel.cli.exits import Exit
from kernel.cli.options import (
    WaitingCommand,
    asks_hub,
    delivery_options,
    json_option,
    waiting_of,
    waiting_options,
)

if TYPE_CHECKING:
    from kernel.cli.client import Hub
    from kernel.cli.operation import Outcome, Waiting

Row = dict[str, Any]
PAST = {"start": "started", "stop": "stopped", "restart": "restarted", "suspend": "suspended"}


@click.group()
def command() -> None:
    """Agents: programs that a broker runs. An AGENT is named by slug, project/slug or id."""


command.add_command(create)
command.add_command(give_env)
command.add_command(logs)
command.add_command(message)


# -- looking ---------------------------------------------------------------------------------------------------


@command.command("list")
@click.option("--project", metavar="PROJECT", help="Only those of this project.")
@click.option("--phase", help="Only those in this phase.")
@click.option("--broker", metavar="BROKER", help="Only those of this broker: id, name or slug.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many; all when it is not given.")
@json_option
@asks_hub
async def list_agents(
    hub: Hub, project: str | None, phase: str | None, broker: str | None, limit: int | None, as_json: bool
) -> None:
    """Show agents."""
    from kernel.cli.names import broker_named, project_named

    query = {
        "projectId": (await project_named(hub, project))["id"] if project else None,
        "runtimeBrokerId": (await broker_named(hub, broker))["id"] if broker else None,
        "phase": phase,
    }
    listed = await hub.pages("/agents", "agents", limit=limit, **query)
    if as_json:
        show.document(listed)
        return
    projects = await _slugs(hub, "/projects", "projects", "slug")
    brokers = await _slugs(hub, "/runtime-brokers", "brokers", "name")
    rows = [
        (
            row["slug"],
            projects.get(row["projectId"], row["projectId"]),
            row["phase"],
            row.get("activity"),
            brokers.get(row.get("runtimeBrokerId"), row.get("runtimeBrokerId")),
            show.age(row.get("updated")),
            row["id"],
        )
        for row in listed["agents"]
    ]
    show.table(("AGENT", "PROJECT", "PHASE", "ACTIVITY", "BROKER", "CHANGED", "ID"), rows)
    if not rows:
        show.note("no agents: `pointsman agent create NAME --project PROJECT -- COMMAND` makes one")


async def _slugs(hub: Hub, path: str, name: str, field: str) -> dict[Any, Any]:
    """Id → what people call it; empty where the caller may not look."""
    from kernel.cli.failure import CommandFailed

    try:
        return {row["id"]: row.get(field) for row in (await hub.pages(path, name))[name]}
    except CommandFailed as failed:
        if failed.exit_code == Exit.NO_HUB:
            raise
        return {}


async def _called(hub: Hub, kind: str, id: str | None, field: str) -> str | None:
    """`garden (0190…)`; the id alone where the caller may not look, or there is nothing any more."""
    from kernel.cli.failure import CommandFailed
    from kernel.cli.names import path_of

    if not id:
        return None
    try:
        return f"{(await hub.get(path_of(kind, id)))[field]} ({id})"
    except CommandFailed as failed:
        if failed.exit_code == Exit.NO_HUB:
            raise
        return id


@command.command("show")
@click.argument("agent")
@json_option
@asks_hub
async def show_agent(hub: Hub, agent: str, as_json: bool) -> None:
    """Show one agent."""
    from kernel.cli.names import agent_named

    row = await agent_named(hub, agent)
    if as_json:
        show.document(row)
        return
    project = await _called(hub, "projects", row["projectId"], "slug")
    broker = await _called(hub, "runtime-brokers", row.get("runtimeBrokerId"), "name")
    told = row.get("detail") or {}
    show.fields(
        f"agent {row['slug']}",
        [
            ("id", row["id"]),
            ("name", row["name"]),
            ("project", project),
            ("phase", row["phase"]),
            ("activity", row.get("activity")),
            ("broker", broker),
            ("run", row.get("runId")),
            ("task", row.get("taskSummary")),
            ("message", row.get("message") or None),
            *((f"detail {name}", value) for name, value in told.items()),
            ("config", row.get("config") or None),
            ("labels", show.labels(row.get("labels"))),
            ("version", row.get("stateVersion")),
            ("created", show.clock_time(row.get("created"))),
            ("started", show.clock_time(row.get("startedAt"))),
            ("updated", show.clock_time(row.get("updated"))),
            ("last seen", show.clock_time(row.get("lastSeen"))),
            ("deleted", show.clock_time(row.get("deletedAt"))),
        ],
    )


# -- operations ------------------------------------------------------------------------------------------------


async def _operate(hub: Hub, op: str, name: str, body: Row, waiting: Waiting, as_json: bool) -> None:
    """start, stop, restart or suspend, until its outcome is known."""
    from kernel.cli.client import Change, encode
    from kernel.cli.names import agent_named, path_of
    from kernel.cli.operation import Wish, carry_out

    row = await agent_named(hub, name)
    change = Change(method="POST", path=path_of("agents", row["id"], op), body=encode(body))
    wish = Wish(what=f"{op} {row['slug']}", op=op, change=change, agent_id=row["id"])
    outcome = await carry_out(hub, wish, waiting, silent=as_json)
    if outcome.stored:
        _tell_stored(outcome, wish.what, as_json)
        return
    after = outcome.answer.document if outcome.dispatch is None else await hub.get(path_of("agents", row["id"]))
    if as_json:
        show.document(after)
    else:
        show.say(_done_words(after, PAST[op]))


def _tell_stored(outcome: Outcome, what: str, as_json: bool) -> None:
    from kernel.cli.operation import tell_stored

    if as_json:
        show.document(outcome.answer.document)
    else:
        tell_stored(outcome, what)


def _done_words(agent: Row, past: str) -> str:
    """`worker started: running thinking`; `worker stopped`, where the phase says no more."""
    state = " ".join(str(agent[name]) for name in ("phase", "activity") if agent.get(name))
    return f"{agent['slug']} {past}" + ("" if state == past else f": {state}")


def _lifecycle(op: str, says: str, *, task: bool) -> None:
    async def body(hub: Hub, agent: str, as_json: bool, task: str | None = None, **options: Any) -> None:
        await _operate(hub, op, agent, {"task": task} if task else {}, waiting_of(**options), as_json)

    made: Any = asks_hub(body)
    for decorate in (json_option, delivery_options, waiting_options):
        made = decorate(made)
    if task:
        made = click.option("--task", metavar="TEXT", help="What it is to work on.")(made)
    made = click.argument("agent")(made)
    command.command(op, cls=WaitingCommand, help=says)(made)


_lifecycle("start", "Start an agent, as a new run.", task=True)
_lifecycle("stop", "Stop an agent.", task=False)
_lifecycle("restart", "Stop an agent and start it again.", task=True)
_lifecycle("suspend", "Stop an agent so that its next start resumes it.", task=False)


@command.command("delete", cls=WaitingCommand)
@click.argument("agent")
@click.option("--keep-files", is_flag=True, help="Leave its working directory where it is.")
@click.option("--keep-branch", is_flag=True, help="Leave its branch.")
@waiting_options
@delivery_options
@json_option
@asks_hub
async def delete(hub: Hub, agent: str, keep_files: bool, keep_branch: bool, as_json: bool, **options: Any) -> None:
    """Stop and delete an agent; its name is free at once."""
    from kernel.cli.client import Change
    from kernel.cli.names import agent_named, path_of
    from kernel.cli.operation import Wish, carry_out

    row = await agent_named(hub, agent)
    flags = [f"{name}=false" for name, keep in (("deleteFiles", keep_files), ("removeBranch", keep_branch)) if keep]
    path = path_of("agents", row["id"]) + ("?" + "&".join(flags) if flags else "")
    wish = Wish(
        what=f"delete {row['slug']}", op="delete", change=Change(method="DELETE", path=path), agent_id=row["id"]
    )
    outcome = await carry_out(hub, wish, waiting_of(**options), silent=as_json)
    if outcome.stored:
        _tell_stored(outcome, wish.what, as_json)
    elif as_json:
        show.document(outcome.dispatch or await _dispatch_of(hub, outcome, row))
    else:
        show.say(f"{row['slug']} deleted")


async def _dispatch_of(hub: Hub, outcome: Outcome, row: Row) -> Any:
    """The document of a deletion, whose own answer is empty: its dispatch."""
    from kernel.cli.names import path_of

    return await hub.get(path_of("dispatches", outcome.dispatch_id)) if outcome.dispatch_id else row
