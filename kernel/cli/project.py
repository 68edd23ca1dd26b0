"""`pointsman project`: the namespaces that agents live in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kernel.cli import show
from kernel.cli.options import Pair, asks_hub, json_option

if TYPE_CHECKING:
    from kernel.cli.client import Hub


@click.group()
def command() -> None:
    """The projects that agents belong to. A PROJECT is named by its slug or its id."""


@command.command("create")
@click.argument("name")
@click.option("--slug", help="Its short name; made from NAME when it is not given.")
@click.option("--git-remote", metavar="URL", help="The repository that its agents work on.")
@click.option("--label", "labels", type=Pair(), multiple=True, help="A label; may be repeated.")
@json_option
@asks_hub
async def create(
    hub: Hub, name: str, slug: str | None, git_remote: str | None, labels: tuple[tuple[str, str], ...], as_json: bool
) -> None:
    """Make a project."""
    from kernel.cli.client import Change, encode

    asked = {"name": name, "slug": slug, "gitRemote": git_remote, "labels": dict(labels) or None}
    body = encode({key: value for key, value in asked.items() if value is not None})
    made = (await hub.change(Change(method="POST", path="/projects", body=body))).document
    if as_json:
        show.document(made)
    else:
        show.say(f"project {made['slug']} ({made['id']})")


@command.command("list")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many; all when it is not given.")
@json_option
@asks_hub
async def list_projects(hub: Hub, limit: int | None, as_json: bool) -> None:
    """Show all projects."""
    listed = await hub.pages("/projects", "projects", limit=limit)
    if as_json:
        show.document(listed)
        return
    rows = [(row["slug"], row["name"], show.age(row.get("created")), row["id"]) for row in listed["projects"]]
    show.table(("SLUG", "NAME", "CREATED", "ID"), rows)
    if not rows:
        show.note("no projects yet: `pointsman project create NAME` makes one")


@command.command("show")
@click.argument("project")
@json_option
@asks_hub
async def show_project(hub: Hub, project: str, as_json: bool) -> None:
    """Show one project."""
    from kernel.cli.names import project_named

    row = await project_named(hub, project)
    if as_json:
        show.document(row)
        return
    show.fields(
        f"project {row['slug']}",
        [
            ("id", row["id"]),
            ("name", row["name"]),
            ("git remote", row.get("gitRemote")),
            ("default broker", row.get("defaultRuntimeBrokerId")),
            ("labels", show.labels(row.get("labels"))),
            ("visibility", row.get("visibility")),
            ("created", show.clock_time(row.get("created"))),
            ("updated", show.clock_time(row.get("updated"))),
        ],
    )


@command.command("delete")
@click.argument("project")
@json_option
@asks_hub
async def delete(hub: Hub, project: str, as_json: bool) -> None:
    """Delete a project."""
    from kernel.cli.client import Change
    from kernel.cli.names import path_of, project_named

    row = await project_named(hub, project)
    answer = await hub.change(Change(method="DELETE", path=path_of("projects", row["id"])))
    if as_json:
        show.document(row if answer.document is None else answer.document)
    else:
        show.say(f"project {row['slug']} deleted")
