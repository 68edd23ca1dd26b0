"""Names in, checked and ordered plugins out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pluggy

from kernel.clock import SYSTEM
from kernel.config import Mistake, Settings, misconfigured, read
from kernel.errors import Misbehaved, PointsmanError
from kernel.hooks import Hooks, Implementation, Stat
from kernel.hooks.guard import guarded
from kernel.hookspecs import PROJECT, RULES, SPECIFICATIONS
from kernel.loader.prepare import Prepared, prepare
from kernel.node import NodeId
from kernel.storage import Storage

__all__ = ["Loaded", "PluginRow", "built_from", "checked_settings", "load"]


class PluginRow(msgspec.Struct, frozen=True, kw_only=True):
    """One listed plugin, as people are shown it."""

    name: str
    use: str
    origin: str
    state: Literal["on", "disabled", "switched_off"]
    reason: str = ""
    """Why it is not on."""
    hooks: tuple[Stat, ...] = ()
    """In the order of a request's life."""


class Loaded:
    """The plugins of one hub, built and compiled."""

    def __init__(self, hooks: Hooks, listed: Sequence[Prepared]) -> None:
        self.hooks = hooks
        self._listed = listed

    async def open_storage(self, settings: Settings, node_id: NodeId) -> Storage:
        """Raises: Misconfigured, Unavailable, Misbehaved."""
        answer = await self.hooks.open_storage.ask(settings, node_id)
        if answer is None:
            (plugin,) = self.hooks.open_storage.plugins
            raise Misbehaved(f"plugin {plugin} opened no storage", plugin=plugin, hook="open_storage")
        return answer.value

    def local_token(self) -> str | None:
        """What whoever owns this process may sign in with, if a plugin offers it."""
        answer = self.hooks.offer_token.ask()
        return answer.value if answer else None

    def rows(self) -> list[PluginRow]:
        """One for each listed plugin, in the order in which they are asked."""
        stats: dict[str, list[Stat]] = {}
        for stat in self.hooks.stats():
            stats.setdefault(stat.plugin, []).append(stat)
        return [self._row(plugin, stats.get(plugin.name, [])) for plugin in self._listed]

    def _row(self, plugin: Prepared, stats: list[Stat]) -> PluginRow:
        off = self.hooks.breaker.off.get(plugin.name, "") if not plugin.left_out else ""
        return PluginRow(
            name=plugin.name,
            use=plugin.entry.use,
            origin=plugin.origin,
            state="disabled" if plugin.left_out else "switched_off" if off else "on",
            reason=plugin.left_out or off,
            hooks=tuple(stats) if not plugin.left_out else (),
        )


def checked_settings(
    path: Path | None = None,
    sets: Sequence[str] = (),
    *,
    safe_mode: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in a file, once its plugins were looked at too: what is wrong with either is told at once.

    Raises:
        Misconfigured: with every mistake, each at its place.
    """
    mistakes: list[Mistake] = []
    settings = read(path, sets, mistakes, environ)
    prepare(settings, mistakes, safe_mode=safe_mode, environ=environ)
    if mistakes:
        raise misconfigured(mistakes)
    return settings


def load(
    settings: Settings,
    *,
    safe_mode: bool = False,
    environ: Mapping[str, str] | None = None,
    monotonic: Callable[[], float] = SYSTEM.monotonic,
) -> Loaded:
    """All plugins that are listed and enabled, less what `POINTSMAN_PLUGINS_DISABLE` names; in safe mode only those
    that ship with pointsman.

    Raises:
        Misconfigured: with every mistake, each at its place in the YAML file.
    """
    mistakes: list[Mistake] = []
    listed = prepare(settings, mistakes, safe_mode=safe_mode, environ=environ)
    if mistakes:
        raise misconfigured(mistakes)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(SPECIFICATIONS)
    for plugin in listed:
        if plugin.shape is not None:
            _register(manager, plugin, mistakes)
    if mistakes:
        raise misconfigured(mistakes)
    return Loaded(Hooks(_implementations(manager), settings.breaker, monotonic), listed)


def _register(manager: pluggy.PluginManager, plugin: Prepared, mistakes: list[Mistake]) -> None:
    """Builds it and hands it to pluggy, whose word is the last on whether it fits."""
    built, error = guarded(lambda: built_from(plugin))
    if error is None:
        _, error = guarded(lambda: manager.register(built, plugin.name))
    if error is not None:
        told = error.message if isinstance(error, PointsmanError) else f"raised {type(error).__name__}: {error}"
        mistakes.append(Mistake(plugin.entry.where, f"plugins.{plugin.entry.use}", f"cannot be built: {told}"))


def built_from(plugin: Prepared) -> Any:
    """The plugin itself, from its class and its configuration; a module is one as it stands."""
    assert plugin.shape is not None
    if not isinstance(plugin.shape.thing, type):
        return plugin.shape.thing
    return plugin.shape.thing() if plugin.shape.config is None else plugin.shape.thing(plugin.config)


def _implementations(manager: pluggy.PluginManager) -> Iterator[Implementation]:
    """In the order of registration: pluggy's own, last in first out, is nobody's concern."""
    for hook in RULES:
        for found in getattr(manager.hook, hook).get_hookimpls():
            yield Implementation(
                plugin=found.plugin_name, hook=hook, call=found.function, arguments=tuple(found.argnames)
            )
