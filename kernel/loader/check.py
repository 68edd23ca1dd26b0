"""Whether a plugin fits: its `api`, its `Config`, and each hook that it implements."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import msgspec

from kernel.config.decode import nearest
from kernel.hookspecs import API, PROJECT, RULES, Kind, Rule

Complain = Callable[[str, str], None]
"""Told the attribute or hook that is wrong, and what is wrong with it."""

_MARK = f"{PROJECT}_impl"
_INSTEAD = {
    "tryfirst": "the order is the YAML file's: write `before:` or move the line",
    "trylast": "the order is the YAML file's: write `after:` or move the line",
    "hookwrapper": "implement around_dispatch, or a hook of your own",
    "wrapper": "implement around_dispatch, or a hook of your own",
}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that was looked at but not built."""

    thing: Any
    """A class, or a module of functions."""
    name: str
    config: type[msgspec.Struct] | None
    hooks: dict[str, tuple[str, ...]]
    """Hook → the arguments that its implementation takes, in its own order. The hooks are in the order of a request."""
    attributes: dict[str, str]
    """Hook → the attribute that implements it."""


def shape_of(thing: Any, use: str, complain: Complain) -> Shape | None:
    """What `thing` is as a plugin; what keeps it from being one is complained about."""
    thing = getattr(thing, "Plugin", thing) if isinstance(thing, ModuleType) else thing
    if not inspect.isclass(thing) and not isinstance(thing, ModuleType):
        complain("", f"expected a class, or a module with Plugin or hooks in it, found a {type(thing).__name__}")
        return None
    if getattr(thing, "api", None) != API:
        found = getattr(thing, "api", "none")
        complain("api", f"expected `api = {API}`, found {found}: this pointsman speaks version {API}")
    marked = list(_marked(thing, complain))
    if not marked:
        complain("", "expected at least one function marked @hookimpl, found none")
    hooks: dict[str, tuple[str, ...]] = {}
    attributes: dict[str, str] = {}
    for attribute, function, options in marked:
        rule = _rule(attribute, options, complain)
        if rule is not None:
            hooks[rule.name] = _arguments(rule, function, thing, complain)
            attributes[rule.name] = attribute
    return Shape(
        thing=thing,
        name=str(getattr(thing, "name", None) or use),
        config=_config(thing, complain),
        hooks={hook: hooks[hook] for hook in RULES if hook in hooks},
        attributes=attributes,
    )


def _config(thing: Any, complain: Complain) -> type[msgspec.Struct] | None:
    config = getattr(thing, "Config", None)
    if config is None:
        return None
    if inspect.ismodule(thing):
        complain("Config", "expected a class Plugin that takes it, found Config in a module of functions")
        return None
    if not (inspect.isclass(config) and issubclass(config, msgspec.Struct)):
        complain("Config", f"expected a msgspec.Struct, found {config!r}")
        return None
    return config


def _marked(thing: Any, complain: Complain) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The functions with @hookimpl on them. One that is named like a hook and lacks it is most likely a slip."""
    for attribute in dir(thing):
        function = _bare(inspect.getattr_static(thing, attribute))
        if not inspect.isroutine(function):
            continue
        options = getattr(function, _MARK, None)
        if options is not None:
            yield attribute, function, options
        elif attribute in RULES and getattr(function, "__module__", "") == _home(thing):
            complain(attribute, "expected @hookimpl on it, found none: mark it, or call it something else")


def _rule(attribute: str, options: dict[str, Any], complain: Complain) -> Rule | None:
    for option, instead in _INSTEAD.items():
        if options.get(option):
            complain(attribute, f"expected no {option}, found it: {instead}")
    hook = options.get("specname") or attribute
    if hook not in RULES and not options.get("optionalhook"):
        complain(attribute, f"expected the name of a hook, found {hook}: {nearest(hook, RULES)}")
    return RULES.get(hook)


def _bare(member: Any) -> Any:
    return member.__func__ if isinstance(member, (staticmethod, classmethod)) else member


def _home(thing: Any) -> str:
    return thing.__name__ if isinstance(thing, ModuleType) else str(thing.__module__)


def _arguments(rule: Rule, function: Any, thing: Any, complain: Complain) -> tuple[str, ...]:
    """Those that it takes, less `self` and what has a default."""
    wanted = "async def" if rule.is_async else "def"
    found = _kind_of(function)
    if found != wanted and not (found == "def" and rule.is_async and rule.kind is not Kind.AROUND):
        complain(rule.name, f"expected `{wanted} {rule.name}`, found {found}: {_why(rule)}")
    taken = list(inspect.signature(function).parameters.values())
    if inspect.isclass(thing) and not isinstance(inspect.getattr_static(thing, function.__name__, None), staticmethod):
        taken = taken[1:]
    named = [one for one in taken if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.default is one.empty]
    for one in named:
        if one.name not in rule.arguments:
            expected = ", ".join(rule.arguments) or "no arguments"
            complain(rule.name, f"expected arguments among {expected}, found {one.name}: {_renamed(one.name, rule)}")
        elif one.kind is one.KEYWORD_ONLY:
            complain(rule.name, f"expected {one.name} by position, found it after *: remove the *")
    return tuple(one.name for one in named)


def _kind_of(function: Any) -> str:
    if inspect.isasyncgenfunction(function):
        return "an asynchronous generator"
    return "async def" if inspect.iscoroutinefunction(function) else "def"


def _why(rule: Rule) -> str:
    if rule.is_async:
        return "it is awaited"
    if rule.kind is Kind.BROADCAST:
        return "nobody awaits it; hand the work to a task of your own"
    return "it must answer at once, without I/O"


def _renamed(name: str, rule: Rule) -> str:
    return nearest(name, rule.arguments) if rule.arguments else "remove it"
