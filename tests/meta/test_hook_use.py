"""Every hook is documented, called by the kernel and used by something that ships."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from kernel import config, hookspecs
from kernel.config import PluginEntry, Settings
from kernel.hooks import Hooks
from kernel.hookspecs import RULES
from kernel.loader import load
from kernel.loader.check import shape_of
from kernel.loader.find import declared

ROOT = Path(__file__).resolve().parents[2]
USED_BY_NOBODY_OF_OURS = {
    "around_dispatch": "for tracing and policy, which are other people's",
    "rank_brokers": "the kernel has its own order; an example ranks",
    "on_stop": "the counterpart of on_start",
}


@pytest.mark.parametrize("hook", RULES)
def test_hook_is_documented(hook: str) -> None:
    assert len(inspect.getdoc(getattr(hookspecs, hook)) or "") > 40


@pytest.mark.parametrize("hook", RULES)
def test_hook_is_called_by_the_kernel(hook: str) -> None:
    """A hook enters hookspecs.py with its first caller."""
    callers = []
    for path in (ROOT / "kernel").rglob("*.py"):
        if path.name == "hookspecs.py" or "hooks" in path.parts or "testing" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.Attribute) and node.attr in (hook, f"_{hook}") for node in ast.walk(tree)):
            callers.append(path.name)
    assert callers


def test_hook_is_used_by_a_plugin_that_ships() -> None:
    used = {
        hook for row in load(config.load(ROOT / "conf/local.yaml"), environ={}).hooks.stats() for hook in [row.hook]
    }
    assert set(RULES) - used == set(USED_BY_NOBODY_OF_OURS)


def test_compiled_hooks_are_declared_by_name_for_type_checkers() -> None:
    assert list(Hooks.__annotations__) == list(RULES)


def test_every_declared_plugin_fits() -> None:
    for name, (point,) in declared().items():
        told: list[str] = []
        shape_of(point.load(), name, lambda part, complaint, told=told: told.append(f"{part}: {complaint}"))  # type: ignore[misc]
        assert not told, name


def test_every_declared_plugin_is_listed_in_a_configuration_that_ships() -> None:
    given = {"POINTSMAN_DSN": "postgresql://hub@db/pointsman"}
    listed = {entry.use for path in (ROOT / "conf").glob("*.yaml") for entry in config.load(path, (), given).plugins}
    assert listed == set(declared())


def test_plugin_of_a_foreign_version_is_refused() -> None:
    assert hookspecs.API == 1
    assert Settings(plugins=(PluginEntry.of("sqlite"),)).plugins[0].use == "sqlite"
