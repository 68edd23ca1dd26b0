"""Listed plugins, found and looked at, but not built: nothing of theirs has been called yet."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kernel.config import Mistake, PluginEntry, Settings, Where
from kernel.config.assign import short_name
from kernel.config.decode import Nothing, decode
from kernel.loader.check import Shape, shape_of
from kernel.loader.find import NotFound, imported, source
from kernel.loader.order import ordered

log = logging.getLogger(__name__)

DISABLE = "POINTSMAN_PLUGINS_DISABLE"


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """One listed plugin."""

    entry: PluginEntry
    origin: str = ""
    left_out: str = ""
    """Why it is not loaded although it is listed."""
    shape: Shape | None = None
    """None if it is left out or cannot be used."""
    config: Any = None

    @property
    def name(self) -> str:
        return self.shape.name if self.shape else self.entry.use


def prepare(
    settings: Settings, mistakes: list[Mistake], *, safe_mode: bool = False, environ: Mapping[str, str] | None = None
) -> list[Prepared]:
    """All listed plugins in their order. Imports those that are enabled; what is wrong is added to `mistakes`. What
    is wrong between plugins is told once each of them could be read: before that nobody knows who else is listed."""
    named = (os.environ if environ is None else environ).get(DISABLE, "")
    disabled = {name.strip() for name in named.split(",")} - {""}
    found: list[Mistake] = []
    entries = ordered(settings.plugins, found)
    for name in disabled.difference(*({entry.use, short_name(entry.use)} for entry in entries)):
        log.warning("%s names %s, which is not listed", DISABLE, name)
    prepared = [_prepared(entry, disabled, safe_mode, found) for entry in entries]
    unread = any(not mistake.key or mistake.key.startswith("plugins") for mistake in mistakes)
    mistakes += found if found or unread else _clashes(prepared)
    return prepared


def _prepared(entry: PluginEntry, disabled: set[str], safe_mode: bool, mistakes: list[Mistake]) -> Prepared:
    if not entry.enabled:
        return Prepared(entry=entry, left_out="enabled: false")
    if disabled & {entry.use, short_name(entry.use)}:
        return Prepared(entry=entry, left_out=DISABLE)
    try:
        found = source(entry.use)
    except NotFound as error:
        mistakes.append(_mistake(entry, "use", f"expected a plugin, found {error}"))
        return Prepared(entry=entry)
    if safe_mode and not found.ours:
        return Prepared(entry=entry, origin=found.origin, left_out="safe mode")
    thing, problem = imported(found)
    if problem:
        mistakes.append(_mistake(entry, "use", f"expected a plugin, found {problem}"))
        return Prepared(entry=entry, origin=found.origin)
    return looked_at(entry, found.origin, thing, mistakes)


def looked_at(entry: PluginEntry, origin: str, thing: Any, mistakes: list[Mistake]) -> Prepared:
    """`thing` as a plugin with the configuration of `entry`."""
    before = len(mistakes)
    shape = shape_of(thing, entry.use, lambda part, told: mistakes.append(_mistake(entry, part, told)))
    config = _config(entry, shape, mistakes) if shape else None
    return Prepared(entry=entry, origin=origin, shape=shape if len(mistakes) == before else None, config=config)


def _config(entry: PluginEntry, shape: Shape, mistakes: list[Mistake]) -> Any:
    if shape.config is not None:
        config = decode(entry.config, shape.config, f"plugins.{entry.use}", mistakes)
        return None if isinstance(config, Nothing) else config
    for key, where in entry.config.keys.items():
        told = f"expected nothing, found {key}: {shape.name} reads no configuration"
        mistakes.append(Mistake(where, f"plugins.{entry.use}.{key}", told))
    return None


def _clashes(prepared: Iterable[Prepared]) -> Iterable[Mistake]:
    """What is wrong between plugins that are each all right."""
    used = [one for one in prepared if one.shape]
    names: dict[str, Prepared] = {}
    for one in used:
        if one.name in names:
            told = f"expected a name of its own, found {one.name}, as {names[one.name].entry.use} is called"
            yield _mistake(one.entry, "name", told)
        names.setdefault(one.name, one)
    backends = [one for one in used if one.shape and "open_storage" in one.shape.hooks]
    for one in backends[1:]:
        yield _mistake(one.entry, "open_storage", f"expected one storage backend, found {backends[0].entry.use} too")
    if not backends:
        where = Where(used[0].entry.where.source if used else "the configuration")
        yield Mistake(where, "plugins", "expected one plugin that implements open_storage, found none: list a backend")


def _mistake(entry: PluginEntry, part: str, told: str) -> Mistake:
    key = ".".join(name for name in ("plugins", entry.use, part) if name)
    return Mistake(entry.where, key, told)
