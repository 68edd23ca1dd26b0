"""The page of hooks: from their specifications."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from docs.generator.markdown import code, page, prose, table
from kernel import hookspecs
from kernel.hookspecs import RULES, Kind, Rule

CALLING = {
    Kind.FIRST: "The first answer wins; `None` abstains.",
    Kind.COLLECT: "All are asked; all answers count.",
    Kind.AROUND: "Each plugin wraps the next; the innermost is the dispatch itself.",
    Kind.BROADCAST: "All are told; nobody waits, and no answer is read.",
}


HOOKS = """
In the order in which a request meets them. An implementation may take fewer arguments than stand here; new ones are
only ever appended. Who is asked first is the order of the YAML file. [Plugins](../explanation/plugins.md) tells what
happens when one fails.
"""


def hooks() -> str:
    parts = [HOOKS]
    titles = dict(_titles())
    for name, rule in RULES.items():
        if name in titles:
            parts.append(f"## {titles[name]}")
        parts += [f"### {name}", f"```python\n{_signature(name, rule)}\n```", prose(_hook(name).__doc__ or "")]
        parts.append(table(("", ""), _calling(rule)))
    return page("Hooks", "kernel/hookspecs.py", *parts)


def _hook(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(hookspecs, name)
    return found


def _titles() -> Iterator[tuple[str, str]]:
    """The first hook below each `# -- title` of the file, and that title."""
    title = ""
    for line in inspect.getsource(hookspecs).splitlines():
        if found := re.match(r"# -- (.+?) -{3,}", line):
            title = found[1]
        elif title and (found := re.match(r"(?:async )?def (\w+)\(", line)) and found[1] in RULES:
            yield found[1], title[0].upper() + title[1:]
            title = ""


def _signature(name: str, rule: Rule) -> str:
    return f"{'async ' if rule.is_async else ''}def {name}{inspect.signature(_hook(name))}".replace("'", "")


def _calling(rule: Rule) -> list[tuple[str, str]]:
    colour = "`async def`" if rule.is_async else "plain `def`: it must not wait"
    limit = f"{rule.deadline:g} s" if rule.deadline else code("breaker.deadline" if rule.is_async else "breaker.slow")
    failing = "what asked fails; the plugin is not switched off" if rule.needed else "counted and skipped"
    passing = ", ".join(code(kind.__name__) for kind in rule.passes)
    rows = [("called", CALLING[rule.kind]), ("written as", colour), ("time limit", limit), ("when it fails", failing)]
    return [*rows, ("errors that are answers", passing)] if passing else rows
