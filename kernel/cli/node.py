"""`pointsman node`: the hubs that live, and taking one out of service without losing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kernel.cli import show
from kernel.cli.exits import Exit
from kernel.cli.options import asks_hub, json_option

if TYPE_CHECKING:
    from kernel.cli.client import Hub


@click.group()
def command() -> None:
    """Hubs: the processes that share one database. A NODE is named by its id, or by enough of its beginning."""


@command.command("list")
@json_option
@asks_hub
async def list_nodes(hub: Hub, as_json: bool) -> None:
    """Show the hubs that live, and how many brokers each holds."""
    listed = await hub.get("/nodes")
    if as_json:
        show.document(listed)
        return
    rows = [
        (
            row["id"],
            "draining" if row.get("draining") else "serving",
            row.get("brokers"),
            row.get("version"),
            show.age(row.get("startedAt")),
            f"{show.duration(float(row.get('silentSeconds') or 0))} ago",
        )
        for row in listed["nodes"]
    ]
    show.table(("ID", "STATUS", "BROKERS", "VERSION", "STARTED", "LAST BEAT"), rows)


@command.command("drain")
@click.argument("node")
@json_option
@asks_hub
async def drain(hub: Hub, node: str, as_json: bool) -> None:
    """Let a hub hand its brokers to the others and take nothing new. It stays until it is stopped."""
    from kernel.cli.client import Change
    from kernel.cli.names import path_of

    node_id = await _named(hub, node)
    answer = await hub.change(Change(method="POST", path=path_of("nodes", node_id, "drain")))
    if as_json:
        show.document(answer.document)
        return
    show.say(f"hub {node_id} drains")
    show.note("`pointsman node list` shows what it still holds; stop it when that is nothing")


async def _named(hub: Hub, name: str) -> str:
    """Raises: CommandFailed when no live hub's id begins so, or more than one does."""
    from kernel.cli.failure import CommandFailed

    rows: list[dict[str, Any]] = (await hub.get("/nodes"))["nodes"]
    known = [str(row["id"]) for row in rows]
    found = [one for one in known if one.startswith(name.lower())] if name else []
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandFailed(f"{len(found)} hubs begin with {name}", Exit.USAGE, fix=f"say which: {', '.join(found)}")
    raise CommandFailed(f"no live hub {name}", Exit.NOT_FOUND, fix=f"these live: {', '.join(known)}")
