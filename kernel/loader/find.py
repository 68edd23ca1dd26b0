"""From the name under `use` to the thing that it names, importing nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from kernel.config.decode import nearest
from kernel.hooks.guard import guarded
from kernel.hookspecs import PROJECT

GROUP = f"{PROJECT}.plugins"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a plugin comes from, before anything of it is imported."""

    origin: str
    """The distribution and its version, the module or the file: for people."""
    ours: bool
    """It ships with pointsman: safe mode loads it."""
    fetch: Callable[[], Any]
    """Imports it."""


class NotFound(Exception):
    """Nothing goes by this name; the message ends the sentence `found …`."""


def declared() -> dict[str, list[EntryPoint]]:
    """The names that installed distributions declare."""
    found: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(group=GROUP):
        same = found.setdefault(entry_point.name, [])
        if entry_point.value not in {other.value for other in same}:
            same.append(entry_point)
    return found


def source(use: str) -> Source:
    """Raises: NotFound."""
    path, _, attribute = use.partition(":") if not _drive(use) else (use, "", "")
    if path.endswith(".py") or path.startswith(("./", "../", "/")):
        return _file(Path(path), attribute)
    candidates = declared().get(use, [])
    ours = [one for one in candidates if one.dist and one.dist.name == PROJECT]
    candidates = ours or candidates  # nobody takes the place of what ships with pointsman by declaring its name
    if len(candidates) > 1:
        who = " and ".join(sorted(f"{one.dist.name if one.dist else '?'} ({one.value})" for one in candidates))
        raise NotFound(f"that {who} both declare it: write the module instead")
    if candidates:
        return _entry_point(candidates[0])
    return _module(use)


def imported(found: Source) -> tuple[Any, str]:
    """The thing itself, or why it cannot be imported."""
    thing, error = guarded(found.fetch)
    if error is None:
        return thing, ""
    if isinstance(error, NotFound):
        return None, str(error)
    return None, f"that importing {found.origin} raised {type(error).__name__}: {error}"


def _drive(use: str) -> bool:
    return len(use) > 2 and use[1] == ":" and use[2] in "\\/"


def _entry_point(entry_point: EntryPoint) -> Source:
    distribution = entry_point.dist
    origin = f"{distribution.name} {distribution.version}" if distribution else entry_point.value
    ours = distribution is not None and distribution.name == PROJECT
    return Source(origin=origin, ours=ours, fetch=entry_point.load)


def _file(path: Path, attribute: str) -> Source:
    if not path.is_file():
        raise NotFound(f"no file {path} (relative paths start at the working directory)")
    return Source(origin=str(path), ours=False, fetch=lambda: _attribute(_run(path.resolve()), attribute))


def _run(path: Path) -> ModuleType:
    """The module in a file; the same one until the file changes."""
    key = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"{PROJECT}_file_{path.stem}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise NotFound(f"that {path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(use: str) -> Source:
    name, _, attribute = use.partition(":")
    return Source(
        origin=use,
        ours=name.split(".", maxsplit=1)[0] == "plugins",
        fetch=lambda: _attribute(_module_named(use, name), attribute),
    )


def _module_named(use: str, name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # A module that exists and misses one of its own imports is another mistake.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        hint = nearest(use, _known())
        raise NotFound(
            f"neither a plugin that an installed package declares nor a module of that name: {hint}"
        ) from None


def _known() -> Iterable[str]:
    return sorted(declared())


def _attribute(module: ModuleType, attribute: str) -> Any:
    thing: Any = module
    for name in attribute.split(".") if attribute else ():
        if not hasattr(thing, name):
            public = [other for other in vars(thing) if not other.startswith("_")]
            raise NotFound(f"no {name} in {thing.__name__}: {nearest(name, public)}")
        thing = getattr(thing, name)
    return thing
