"""`pointsman plugins`: what is plugged in, what could be, and whether something fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kernel.cli import show
from kernel.cli.exits import Exit
from kernel.cli.options import asks_hub, json_option

if TYPE_CHECKING:
    from kernel.cli.client import Hub
    from kernel.config import Mistake
    from kernel.loader.prepare import Prepared

F = TypeVar("F", bound=Callable[..., Any])
LONGEST = 400
"""Characters of one verdict that people are shown: a whole request is longer."""


@click.group()
def command() -> None:
    """What is plugged in, and whether a plugin fits."""


def configured(body: F) -> F:
    """`--config` and `--set`, as `serve` takes them. Arrive as `config` and `assignments`."""
    overridden = click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override one setting; may be repeated."
    )(body)
    return click.option(
        "--config", type=click.Path(path_type=Path), help="YAML file [default: $POINTSMAN_CONFIG, conf/local.yaml]"
    )(overridden)


@command.command("list")
@configured
@click.option("--safe-mode", is_flag=True, help="As `serve --safe-mode` would load them.")
@json_option
def list_plugins(config: Path | None, assignments: tuple[str, ...], safe_mode: bool, as_json: bool) -> Exit:
    """Show the plugins that a configuration lists, in their order, and those that it could list."""
    listed, mistakes = _listed(config, assignments, safe_mode=safe_mode)
    rows = [_row(plugin, mistakes) for plugin in listed] + _unlisted(listed)
    if as_json:
        show.document({"plugins": rows, "mistakes": [str(mistake) for mistake in mistakes]})
    else:
        cells = [(row["name"], row["state"], row["use"], row["hooks"], row["origin"], row["reason"]) for row in rows]
        joined = [(*cell[:3], " ".join(cell[3]), *cell[4:]) for cell in cells]
        show.table(("NAME", "STATE", "USE", "HOOKS", "FROM", "WHY"), joined)
        for mistake in mistakes:
            show.note(f"error: {mistake}")
    return Exit.MISCONFIGURED if mistakes else Exit.DONE


@command.command("running")
@json_option
@asks_hub
async def running(hub: Hub, as_json: bool) -> None:
    """Show the plugins of a running hub: who is switched off and why, what each hook costs, what went wrong."""
    told = await hub.get("/plugins")
    if as_json:
        show.document(told)
        return
    rows = [
        (
            plugin["name"],
            plugin["state"],
            hook.get("hook"),
            hook.get("calls"),
            _microseconds(hook),
            hook.get("faults"),
            hook.get("lastFault") or plugin.get("reason"),
        )
        for plugin in told["plugins"]
        for hook in plugin["hooks"] or [{}]
    ]
    show.table(("NAME", "STATE", "HOOK", "CALLS", "µs EACH", "FAULTS", "LAST FAULT"), rows)


@command.command("show")
@click.argument("name")
@configured
@json_option
def show_plugin(name: str, config: Path | None, assignments: tuple[str, ...], as_json: bool) -> Exit:
    """Show one plugin: its hooks, and what it reads from the configuration. NAME is listed, or any `use`."""
    from kernel.cli.plugins_check import described, found

    listed, mistakes = _listed(config, assignments)
    plugin, wrong = found(name, listed, mistakes)
    if plugin.shape is None:
        for mistake in wrong:
            show.note(f"error: {mistake}")
        return Exit.MISCONFIGURED if wrong else _left_out(plugin)
    document = described(plugin)
    if as_json:
        show.document(document)
        return Exit.DONE
    show.fields(f"plugin {plugin.name}", [(key, document[key]) for key in ("use", "from", "promise")])
    hooks = [
        (hook["hook"], hook["kind"], "yes" if hook["async"] else "no", hook["takes"]) for hook in document["hooks"]
    ]
    show.table(("HOOK", "KIND", "ASYNC", "TAKES"), [(*hook[:3], ", ".join(hook[3])) for hook in hooks])
    if document["config"]:
        show.table(
            ("CONFIG", "EXPECTED", "DEFAULT", "NOW"),
            [(one["key"], one["expected"], one["default"], one["now"]) for one in document["config"]],
        )
    return Exit.DONE


@command.command("check")
@click.argument("target")
@click.option("--set", "values", multiple=True, metavar="KEY=VALUE", help="A value of its own config; may be repeated.")
@json_option
def check(target: str, values: tuple[str, ...], as_json: bool) -> Exit:
    """Try whether TARGET (./mine.py, package.module:attribute, a declared name) fits, and say what to put right."""
    from kernel.cli.plugins_check import checked

    verdicts = checked(target, values)
    if as_json:
        told = [{"check": one.check, "ok": one.ok, "told": one.told} for one in verdicts]
        show.document({"target": target, "ok": all(one.ok for one in verdicts), "checks": told})
    else:
        for one in verdicts:
            show.say(f"{'ok  ' if one.ok else 'FIX '} {one.check}" + (f": {_short(one.told)}" if one.told else ""))
    return Exit.DONE if all(one.ok for one in verdicts) else Exit.MISCONFIGURED


# -- what a configuration lists ------------------------------------------------------------------------------


def _listed(
    config: Path | None, assignments: tuple[str, ...], *, safe_mode: bool = False
) -> tuple[list[Prepared], list[Mistake]]:
    from kernel.config import load
    from kernel.loader.prepare import prepare

    mistakes: list[Mistake] = []
    return prepare(load(config, assignments), mistakes, safe_mode=safe_mode), mistakes


def _row(plugin: Prepared, mistakes: list[Mistake]) -> dict[str, Any]:
    own = [mistake.complaint for mistake in mistakes if mistake.where == plugin.entry.where]
    state = "on" if plugin.shape else "disabled" if plugin.left_out else "broken"
    return {
        "name": plugin.name,
        "use": plugin.entry.use,
        "origin": plugin.origin,
        "state": state,
        "hooks": list(plugin.shape.hooks) if plugin.shape else [],
        "reason": plugin.left_out or (own[0] if own and state == "broken" else ""),
    }


def _unlisted(listed: list[Prepared]) -> list[dict[str, Any]]:
    """What installed packages declare and this configuration does not list."""
    from kernel.loader.find import declared

    uses = {plugin.entry.use for plugin in listed}
    return [
        {
            "name": name,
            "use": name,
            "origin": " or ".join(f"{one.dist.name} {one.dist.version}" for one in points if one.dist),
            "state": "unlisted",
            "hooks": [],
            "reason": "",
        }
        for name, points in sorted(declared().items())
        if name not in uses
    ]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… (--json shows the rest)"


def _left_out(plugin: Prepared) -> Exit:
    show.note(f"{plugin.entry.use} is not loaded: {plugin.left_out}")
    return Exit.NOT_FOUND


def _microseconds(hook: dict[str, Any]) -> str | None:
    return f"{hook['seconds'] / hook['calls'] * 1e6:.1f}" if hook.get("calls") else None
