"""`pointsman dispatch`: what became of an operation, and why it still waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kernel.cli import show
from kernel.cli.exits import Exit
from kernel.cli.options import WaitingCommand, asks_hub, json_option, waiting_of, waiting_options

if TYPE_CHECKING:
    from datetime import datetime

    from kernel.cli.client import Hub

Row = dict[str, Any]
STATES = ("pending", "in_progress", "done", "failed", "expired", "cancelled")
OPS = ("create", "start", "stop", "restart", "suspend", "delete", "finalize_env", "check_prompt", "message")
ENOUGH = 100


@click.group()
def command() -> None:
    """Operations and messages on their way to a broker, and those that have ended."""


@command.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--op", type=click.Choice(OPS), help="Only this operation.")
@click.option("--agent", metavar="AGENT", help="Only those of this agent.")
@click.option("--broker", metavar="BROKER", help="Only those of this broker: id, name or slug.")
@click.option("--project", metavar="PROJECT", help="Only those of this project.")
@click.option("--group", metavar="GROUP", help="Only messages that were said together.")
@click.option("--limit", type=click.IntRange(min=1), default=ENOUGH, show_default=True, help="The newest so many.")
@click.option("--all", "everything", is_flag=True, help="All that is kept, however much.")
@json_option
@asks_hub
async def list_dispatches(
    hub: Hub,
    state: str | None,
    op: str | None,
    agent: str | None,
    broker: str | None,
    project: str | None,
    group: str | None,
    limit: int,
    everything: bool,
    as_json: bool,
) -> None:
    """Show dispatches, the newest first."""
    from kernel.cli.names import agent_named, broker_named, project_named

    query = {
        "state": state,
        "op": op,
        "agentId": (await agent_named(hub, agent))["id"] if agent else None,
        "brokerId": (await broker_named(hub, broker))["id"] if broker else None,
        "projectId": (await project_named(hub, project))["id"] if project else None,
        "groupId": group,
    }
    listed = await hub.pages("/dispatches", "dispatches", limit=None if everything else limit, **query)
    if as_json:
        show.document(listed)
        return
    rows = [_listed(row) for row in listed["dispatches"]]
    show.table(("DISPATCH", "OP", "AGENT", "STATE", "ATTEMPTS", "CREATED", "ERROR"), rows)
    if listed["nextCursor"]:
        show.note(f"there are more than {len(rows)}: --limit N or --all shows them")


def _listed(row: Row) -> tuple[Any, ...]:
    return (
        row["id"],
        row["op"],
        row.get("agentSlug") or row.get("agentId"),
        row["state"],
        row.get("attempts"),
        show.age(row.get("created")),
        (row.get("error") or {}).get("code"),
    )


def timeline_option(command: Any) -> Any:
    return click.option(
        "--timeline", "only_timeline", is_flag=True, help="Only its course: who did what, and the milliseconds between."
    )(command)


@command.command("show")
@click.argument("dispatch")
@timeline_option
@json_option
@asks_hub
async def show_dispatch(hub: Hub, dispatch: str, only_timeline: bool, as_json: bool) -> None:
    """Show one dispatch."""
    from kernel.cli.names import dispatch_id_of, path_of

    row = await hub.get(path_of("dispatches", dispatch_id_of(dispatch)))
    if only_timeline:
        await _tell_timeline(hub, row, as_json)
        return
    if as_json:
        show.document(row)
        return
    error = row.get("error") or {}
    times = ("created", "claimedAt", "sentAt", "acceptedAt", "endedAt", "deadlineAt", "nextAttemptAt")
    show.fields(
        f"dispatch {row['id']}",
        [
            ("operation", row["op"]),
            ("state", row["state"]),
            ("error", f"{error.get('code')}: {error.get('message')}" if error else None),
            ("agent", f"{row.get('agentSlug')} ({row.get('agentId')})"),
            ("project", row.get("projectId")),
            ("broker", row.get("brokerId")),
            ("route", row.get("route")),
            ("lane", row.get("lane")),
            ("attempts", f"{row.get('attempts')}, of which {row.get('failures')} failed"),
            ("claimed by", row.get("claimedBy")),
            ("epoch", row.get("claimedEpoch")),
            *((_spaced(name), show.clock_time(row.get(name))) for name in times),
            ("asked by", row.get("principal")),
            ("request", row.get("requestId")),
            ("requeued from", row.get("requeuedFrom")),
            ("result", row.get("result")),
        ],
    )


async def _tell_timeline(hub: Hub, row: Row, as_json: bool) -> None:
    from kernel.cli.names import path_of
    from kernel.cli.timeline import timeline

    told = await hub.get(path_of("dispatches", row["id"], "explain"))
    if as_json:
        show.document({"dispatch": row, "transitions": told["transitions"]})
        return
    for line in timeline(row, told["transitions"]):
        show.say(line)


def _spaced(name: str) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).removesuffix(" at")


@command.command("explain")
@click.argument("dispatch")
@timeline_option
@json_option
@asks_hub
async def explain(hub: Hub, dispatch: str, only_timeline: bool, as_json: bool) -> None:
    """Say in words why a dispatch is where it is, and what happened to it so far."""
    from kernel.cli.names import dispatch_id_of, path_of

    if only_timeline:
        await _tell_timeline(hub, await hub.get(path_of("dispatches", dispatch_id_of(dispatch))), as_json)
        return
    told = await hub.get(path_of("dispatches", dispatch_id_of(dispatch), "explain"))
    if as_json:
        show.document(told)
        return
    show.say(told["sentence"])
    show.fields("", _reasons(told))
    show.say("")
    show.table(("TIME", "AFTER", "FROM", "TO", "REASON", "ATTEMPT", "EPOCH", "NODE"), _course(told["transitions"]))


def _reasons(told: Row) -> list[tuple[str, Any]]:
    behind, owner, broker = told.get("behind"), told.get("owner"), told.get("broker")
    # What has ended has no deadline any more, but for the one that ended it.
    is_over = told["code"] == "ended" and told["state"] != "expired"
    return [
        ("state", told["state"]),
        ("code", told["code"]),
        ("next attempt", _due(told.get("nextAttemptAt"))),
        ("deadline", None if is_over else _due(told.get("deadlineAt"))),
        ("behind", f"{behind['op']} {behind['id']}" if behind else None),
        ("owner", _owner(owner) if owner else None),
        ("broker", _broker(broker) if broker else None),
    ]


def _due(text: Any) -> str | None:
    return f"{show.clock_time(text)} ({show.age(text)})" if text else None


def _owner(owner: Row) -> str:
    alive = "alive" if owner.get("alive") else "lost"
    renewed = show.age(owner.get("renewedAt"))
    return f"node {owner.get('nodeId')}, {alive}, epoch {owner.get('epoch')}, renewed {renewed}"


def _broker(broker: Row) -> str:
    since = broker.get("since")
    return f"{broker.get('status')}{f' since {show.clock_time(since)} ({show.age(since)})' if since else ''}"


def _course(transitions: list[Row]) -> list[tuple[Any, ...]]:
    """The transitions in order, each with the milliseconds since the one before."""
    rows: list[tuple[Any, ...]] = []
    before: datetime | None = None
    for step in transitions:
        at = show.instant(step.get("at"))
        after = f"+{(at - before).total_seconds() * 1000:.0f} ms" if at and before else None
        before = at or before
        rows.append(
            (
                at.astimezone().strftime("%H:%M:%S.%f")[:-3] if at else step.get("at"),
                after,
                step.get("from"),
                step.get("to"),
                step.get("reason"),
                step.get("attempt"),
                step.get("epoch"),
                step.get("nodeId"),
            )
        )
    return rows


@command.command("cancel", cls=WaitingCommand)
@click.argument("dispatch")
@waiting_options
@json_option
@asks_hub
async def cancel(hub: Hub, dispatch: str, wait: float | str | None, no_wait: bool, as_json: bool) -> Exit:
    """Cancel what has not been sent yet; ask the broker to stop what was."""
    from kernel.cli.client import Change
    from kernel.cli.names import dispatch_id_of, path_of
    from kernel.cli.operation import settled

    id = dispatch_id_of(dispatch)
    waiting = waiting_of(wait=wait, no_wait=no_wait, hold=False, now=False, deadline=None)
    answer = await hub.change(Change(method="POST", path=path_of("dispatches", id, "cancel")))
    told = answer.document
    if told["outcome"] == "cancel_requested" and waiting.follow:
        told = {**told, "dispatch": await settled(hub, id, f"cancel of {id}", waiting, silent=as_json)}
    if as_json:
        show.document(told)
    else:
        show.say(_cancelled_words(told))
    return _cancelled_exit(told)


def _cancelled_words(told: Row) -> str:
    row = told["dispatch"]
    if row["state"] == "cancelled":
        return f"{row['op']} {row.get('agentSlug')} cancelled"
    if told["outcome"] == "already_ended":
        return f"{row['op']} {row.get('agentSlug')} had ended before: {row['state']}"
    if row["state"] in ("pending", "in_progress"):
        return f"{row['op']} {row.get('agentSlug')} was sent: the broker is asked to stop it"
    return f"{row['op']} {row.get('agentSlug')} could not be stopped any more: {row['state']}"


def _cancelled_exit(told: Row) -> Exit:
    """Done when it is cancelled, refused when it had ended otherwise, unknown while the broker has it."""
    state = told["dispatch"]["state"]
    if state == "cancelled":
        return Exit.DONE
    return Exit.UNKNOWN if state in ("pending", "in_progress") else Exit.REFUSED


@command.command("requeue", cls=WaitingCommand)
@click.argument("dispatch")
@waiting_options
@json_option
@asks_hub
async def requeue(hub: Hub, dispatch: str, wait: float | str | None, no_wait: bool, as_json: bool) -> None:
    """Do an ended dispatch again, as a new one. For administrators."""
    from kernel.cli.names import dispatch_id_of, path_of
    from kernel.cli.operation import followed

    id = dispatch_id_of(dispatch)
    waiting = waiting_of(wait=wait, no_wait=no_wait, hold=False, now=False, deadline=None)
    row = await _once_more(hub, path_of("dispatches", id, "requeue"))
    if waiting.follow:
        row = await followed(hub, row["id"], f"{row['op']} {row.get('agentSlug')}", waiting, silent=as_json)
    if as_json:
        show.document(row)
    else:
        show.say(f"{row['op']} {row.get('agentSlug')}: {row['state']}, as {row['id']}")


async def _once_more(hub: Hub, path: str) -> Row:
    """Sent once: each request makes a dispatch of its own."""
    from kernel.cli.failure import Broken, CommandFailed

    try:
        answer = await hub.send("POST", path)
    except Broken as broken:
        raise CommandFailed(
            f"{broken.message}: it may or may not have been requeued",
            Exit.UNKNOWN,
            fix="look with `pointsman dispatch list` before you repeat it",
        ) from broken
    if answer.status >= 400:
        raise hub.refused(answer)
    row: Row = answer.document
    return row
