"""Finds what a person named: projects by slug or id, agents by slug, project/slug or id."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from kernel.cli.client import Hub
from kernel.cli.exits import Exit
from kernel.cli.failure import CommandFailed
from kernel.clock import is_uuid
from kernel.project import slug_of

Row = dict[str, Any]


def path_of(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)


async def project_named(hub: Hub, name: str) -> Row:
    """Raises: CommandFailed that lists what was probably meant."""
    found = await _first_of(hub, [path_of("projects", spelling) for spelling in _spellings(name)])
    if found:
        return found
    known = await hub.pages("/projects", "projects")
    raise _no_such("project", name, [str(row.get("slug")) for row in known["projects"]])


async def broker_named(hub: Hub, name: str) -> Row:
    """By id, slug or name. Raises: CommandFailed that lists what was probably meant."""
    found = await _first_of(hub, [path_of("runtime-brokers", name)])
    if found:
        return found
    known = await hub.pages("/runtime-brokers", "brokers")
    raise _no_such("broker", name, [str(row.get("name")) for row in known["brokers"]])


async def agent_named(hub: Hub, name: str) -> Row:
    """Raises: CommandFailed when there is none, or more than one."""
    if is_uuid(name):
        found: Row = await hub.get(path_of("agents", name))
        return found
    project_name, slash, slug = name.rpartition("/")
    project = await project_named(hub, project_name) if slash else None
    found_all = await (_agent_of(hub, project, slug) if project else _agents_called(hub, slug))
    if not found_all:
        raise await _no_such_agent(hub, name, project)
    if len(found_all) == 1:
        return found_all[0]
    projects = {row["id"]: row.get("slug") for row in (await hub.pages("/projects", "projects"))["projects"]}
    choices = [f"{projects.get(row['projectId'], row['projectId'])}/{slug}" for row in found_all]
    raise CommandFailed(
        f"{len(found_all)} agents are called {slug!r}", Exit.USAGE, fix=f"say which: {', '.join(sorted(choices))}"
    )


async def _agent_of(hub: Hub, project: Row, slug: str) -> list[Row]:
    inside = path_of("projects", project["id"], "agents")
    found = await _first_of(hub, [inside + path_of(spelling) for spelling in _spellings(slug)])
    return [found] if found else []


async def _first_of(hub: Hub, paths: list[str]) -> Row | None:
    """What stands at the first of these where there is something."""
    for path in paths:
        try:
            found: Row = await hub.get(path)
            return found
        except CommandFailed as failed:
            if failed.exit_code != Exit.NOT_FOUND:
                raise
    return None


async def _agents_called(hub: Hub, slug: str) -> list[Row]:
    for spelling in _spellings(slug):
        # A hub that does not know the filter lists all, hence the second look.
        listed = await hub.pages("/agents", "agents", slug=spelling)
        found = [row for row in listed["agents"] if row.get("slug") == spelling]
        if found:
            return found
    return []


def _spellings(name: str) -> list[str]:
    """As it was typed, and as the slug of what was typed. Dots alone would be steps in a path."""
    return [spelling for spelling in dict.fromkeys((name, slug_of(name))) if spelling.strip(".")]


async def _no_such_agent(hub: Hub, name: str, project: Row | None) -> CommandFailed:
    listed = await hub.pages("/agents", "agents", projectId=project["id"] if project else None)
    before = f"{project['slug']}/" if project else ""
    return _no_such("agent", name, [f"{before}{row.get('slug')}" for row in listed["agents"]])


def _no_such(kind: str, name: str, known: list[str]) -> CommandFailed:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=3, cutoff=0.6)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return CommandFailed(
        f"there is no {kind} {name!r}", Exit.NOT_FOUND, fix=f"{meant}`pointsman {kind} list` lists them"
    )


def dispatch_id_of(text: str) -> str:
    """Raises: CommandFailed when it cannot be one."""
    if not is_uuid(text):
        raise CommandFailed(
            f"{text!r} is no id of a dispatch",
            Exit.NOT_FOUND,
            fix="an id looks like 0190c7b2-6f1e-7cc3-98c4-dc0c0c07398f; `pointsman dispatch list` lists them",
        )
    return text
