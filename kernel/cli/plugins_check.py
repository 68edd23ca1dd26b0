"""Looks at one plugin: what it is, and whether it keeps what a hub expects of it."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from kernel.cli.exits import Exit
from kernel.cli.failure import CommandFailed
from kernel.config import Mistake, PluginEntry, Where
from kernel.config.assign import assigned, short_name
from kernel.config.decode import decode, expectation
from kernel.config.document import Table
from kernel.config.quantity import written
from kernel.hooks.guard import guarded
from kernel.hookspecs import RULES
from kernel.loader import built_from
from kernel.loader.find import NotFound, imported, source
from kernel.loader.prepare import Prepared, looked_at


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    check: str
    ok: bool
    told: str = ""
    """What to put right."""


def found(name: str, listed: Sequence[Prepared], mistakes: Sequence[Mistake]) -> tuple[Prepared, list[Mistake]]:
    """The listed plugin that goes by `name`, else whatever `use: name` would load; and what is wrong with it.

    Raises: CommandFailed if there is neither.
    """
    for plugin in listed:
        if name in (plugin.name, plugin.entry.use, short_name(plugin.entry.use)):
            return plugin, [mistake for mistake in mistakes if f"plugins.{plugin.entry.use}" in mistake.key]
    return _fetched(PluginEntry.of(name))


def _fetched(entry: PluginEntry) -> tuple[Prepared, list[Mistake]]:
    wrong: list[Mistake] = []
    try:
        place = source(entry.use)
    except NotFound as error:
        raise CommandFailed(f"{entry.use}: expected a plugin, found {error}", Exit.NOT_FOUND) from error
    thing, problem = imported(place)
    if problem:
        raise CommandFailed(f"{entry.use}: expected a plugin, found {problem}", Exit.NOT_FOUND)
    return looked_at(entry, place.origin, thing, wrong), wrong


# -- what it is ----------------------------------------------------------------------------------------------


def described(plugin: Prepared) -> dict[str, Any]:
    assert plugin.shape is not None
    module = inspect.getmodule(plugin.shape.thing)
    promise = inspect.getdoc(plugin.shape.thing) or inspect.getdoc(module) or ""
    return {
        "name": plugin.name,
        "use": plugin.entry.use,
        "from": plugin.origin,
        "promise": promise.partition("\n")[0],
        "hooks": [
            {"hook": hook, "kind": RULES[hook].kind, "async": RULES[hook].is_async, "takes": list(takes)}
            for hook, takes in plugin.shape.hooks.items()
        ],
        "config": list(_config(plugin.shape.config, plugin.config)),
    }


def _config(config: type[msgspec.Struct] | None, now: Any) -> Iterator[dict[str, Any]]:
    for field in msgspec.structs.fields(config) if config else ():
        default = (
            field.default_factory() if field.default is msgspec.NODEFAULT and not field.required else field.default
        )
        yield {
            "key": field.encode_name,
            "expected": expectation(field.type),
            "default": "required" if field.required else written(default, field.type),
            "now": written(getattr(now, field.name), field.type) if now is not None else None,
        }


# -- whether it fits -----------------------------------------------------------------------------------------


def checked(target: str, values: Sequence[str]) -> list[Verdict]:
    """Raises: CommandFailed if there is nothing of that name."""
    wrong: list[Mistake] = []
    table = Table({}, {}, Where("--set"))
    for value in values:
        table = assigned(table, value, os.environ, wrong)
    plugin, misfits = _fetched(msgspec.structs.replace(PluginEntry.of(target), config=table))
    verdicts = [
        Verdict(check="what it needs and offers", ok=False, told=mistake.complaint) for mistake in (*wrong, *misfits)
    ]
    if plugin.shape is None or verdicts:
        return verdicts
    hooks = ", ".join(plugin.shape.hooks)
    fits = Verdict(check=f"api, config, names, colour and arguments fit ({hooks})", ok=True)
    _, error = guarded(lambda: built_from(plugin))
    if error is not None:
        told = f"building it raised {type(error).__name__}: {error}"
        return [fits, Verdict(check="a hub can build it", ok=False, told=told)]
    built = Verdict(check="a hub can build it", ok=True)
    routes = {"rank_route", "rank_brokers"} & set(plugin.shape.hooks)
    return [fits, built, *(_as_strategy(plugin) if routes else ())]


def _as_strategy(plugin: Prepared) -> Iterator[Verdict]:
    """The shipped contract of route strategies, test by test. One that is slow is tried no further."""
    from kernel.testing.routes import RouteContract

    assert plugin.shape is not None
    logging.getLogger("kernel").addHandler(logging.NullHandler())  # what a hub would log is in the verdicts
    config = decode(plugin.entry.config, dict[str, Any], "", [])
    contract: Any = type("Contract", (RouteContract,), {"plugin": plugin.shape.thing, "config": config})()
    names = [name for name in vars(RouteContract) if name.startswith("test_")]
    names.sort(key=lambda name: name != "test_it_answers_at_once")
    for name in names:
        _, error = guarded(getattr(contract, name))
        told = "" if error is None else str(error) or type(error).__name__
        if error is not None and not isinstance(error, AssertionError):
            told = f"it raised {type(error).__name__}: {error}"
        yield Verdict(check=name.removeprefix("test_").replace("_", " "), ok=error is None, told=told)
        if error is not None and name == names[0]:
            return
