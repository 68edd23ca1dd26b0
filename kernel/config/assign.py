"""`--set dotted.key=value`, laid over a document."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kernel.config.decode import nearest
from kernel.config.document import Document, Items, Mistake, Scalar, Table, Where, parse
from kernel.config.entries import OWN_KEYS


def assigned(document: Table, assignment: str, environ: Mapping[str, str], mistakes: list[Mistake]) -> Table:
    """`document` with one value set. `plugins.<use>.<key>` reaches into the entry of that plugin."""
    where = Where(source="--set")
    key, equals, text = assignment.partition("=")
    value = parse(text, where.source, environ, mistakes, key=key)
    if equals and key.startswith("plugins."):
        return _in_plugins(document, key.removeprefix("plugins."), value, where, mistakes)
    if equals and all(key.split(".")):
        return _put(document, key.split("."), value, where)
    mistakes.append(Mistake(where, "", f"expected dotted.key=value, found {assignment}"))
    return document


def _put(table: Table, path: list[str], value: Document, where: Where) -> Table:
    name, *rest = path
    if rest:
        inner = table.entries.get(name)
        value = _put(inner if isinstance(inner, Table) else Table({}, {}, where), rest, value, where)
    keys = table.keys if rest and name in table.keys else {**table.keys, name: where}
    return Table({**table.entries, name: value}, keys, table.where)


def _in_plugins(document: Table, dotted: str, value: Document, where: Where, mistakes: list[Mistake]) -> Table:
    plugins = document.entries.get("plugins")
    items = list(plugins.items) if isinstance(plugins, Items) else []
    fitting = [(name, n) for n, item in enumerate(items) for name in _names(item) if dotted.startswith(f"{name}.")]
    longest = max((len(name) for name, _ in fitting), default=0)
    chosen = sorted({n for name, n in fitting if len(name) == longest})
    path = dotted[longest + 1 :].split(".")
    if len(chosen) != 1 or not all(path):
        mistakes.append(Mistake(where, "", _unfound(dotted, [items[n] for n in chosen], items)))
        return document
    entry = items[chosen[0]]
    assert isinstance(entry, Table)
    items[chosen[0]] = _put(entry, path if path[0] in OWN_KEYS[1:] else ["config", *path], value, where)
    assert plugins is not None
    listed = Items(tuple(items), plugins.where)
    return Table({**document.entries, "plugins": listed}, document.keys, document.where)


def _unfound(dotted: str, chosen: list[Document], items: list[Document]) -> str:
    if len(chosen) > 1:
        uses = " and ".join(_names(item)[0] for item in chosen)
        return f"expected one plugin, found that {uses} both go by that name: write the whole `use`"
    listed = [name for item in items for name in _names(item)[:1]]
    return f"expected plugins.<use>.<key> of a listed plugin, found {dotted}: {nearest(dotted, listed)}"


def _names(item: Document) -> list[str]:
    """What an entry goes by: its `use`, and of a path or module the last part."""
    use = item.entries.get("use") if isinstance(item, Table) else None
    if not isinstance(use, Scalar):
        return []
    return list(dict.fromkeys((use.text, short_name(use.text))))


def short_name(use: str) -> str:
    """`my_company.sticky:Sticky` → `Sticky`; `./mine.py` → `mine`."""
    return re.split(r"[.:/\\]", use.removesuffix(".py"))[-1]
