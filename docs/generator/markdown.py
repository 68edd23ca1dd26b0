"""Titles, tables and docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator

NOTE = "<!-- Written by docs/generate.py from {source}: change it there. -->"


def page(title: str, source: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", NOTE.format(source=source), *(part.strip() for part in parts if part))) + "\n"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(headings)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """A docstring as a paragraph of Markdown; what stands in `Raises:` becomes a list."""
    told, _, raised = inspect.cleandoc(text).partition("Raises:")
    paragraphs = [" ".join(part.split()) for part in told.strip().split("\n\n")]
    if raised.strip():
        paragraphs += ["It may raise:", *_raises(raised)]
    return "\n\n".join(paragraphs)


def _raises(text: str) -> Iterator[str]:
    for name, why in re.findall(r"^\s*(\w+): (.+(?:\n {8,}.+)*)", text, re.MULTILINE):
        yield f"- {code(name)}: {' '.join(why.split())}"
