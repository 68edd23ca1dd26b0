"""The list under `plugins:`: who is plugged in, in which order, with which configuration."""

from __future__ import annotations

import msgspec

from kernel.config.decode import Nothing, decode, nearest
from kernel.config.document import Document, Items, Mistake, Scalar, Table, Where
from kernel.config.settings import PluginEntry


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """An item as it is written, less its `config`."""

    use: str
    enabled: bool = True
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


OWN_KEYS = ("use", "enabled", "before", "after")
"""Keys of the entry itself; every other belongs under `config`."""


def entries_of(document: Document, mistakes: list[Mistake]) -> tuple[PluginEntry, ...]:
    if isinstance(document, Scalar) and document.tag == "null":
        return ()
    if not isinstance(document, Items):
        mistakes.append(Mistake(document.where, "plugins", f"expected a list of `- use: …`, found {document.shown}"))
        return ()
    read = [_entry(item, f"plugins[{n}]", mistakes) for n, item in enumerate(document.items)]
    entries = tuple(entry for entry in read if entry is not None)
    first: dict[str, Where] = {}
    for entry in entries:
        if entry.use in first:
            told = f"expected each plugin once, found {entry.use} again (first in line {first[entry.use].line})"
            mistakes.append(Mistake(entry.where, "plugins", told))
        first.setdefault(entry.use, entry.where)
    return entries


def _entry(document: Document, key: str, mistakes: list[Mistake]) -> PluginEntry | None:
    if not isinstance(document, Table):
        mistakes.append(Mistake(document.where, key, f"expected `use: name`, found {document.shown}"))
        return None
    for name, where in document.keys.items():
        if name not in (*OWN_KEYS, "config"):
            told = f"expected a known key, found {name}: {nearest(name, (*OWN_KEYS, 'config'))}"
            mistakes.append(Mistake(where, f"{key}.{name}", f"{told} (what the plugin itself reads goes under config)"))
    config = _config(document, key, mistakes)
    own = {name: entry for name, entry in document.entries.items() if name in OWN_KEYS}
    written = decode(Table(own, {name: document.keys[name] for name in own}, document.where), _Written, key, mistakes)
    if isinstance(written, Nothing):
        return None
    return PluginEntry(
        use=written.use,
        enabled=written.enabled,
        before=written.before,
        after=written.after,
        config=config,
        where=own["use"].where,
        neighbours=_neighbours(own),
    )


def _config(document: Table, key: str, mistakes: list[Mistake]) -> Table:
    config = document.entries.get("config")
    if isinstance(config, Table):
        return config
    if config is not None and config.shown != "nothing":
        mistakes.append(Mistake(config.where, f"{key}.config", f"expected `name: value`, found {config.shown}"))
    return Table({}, {}, document.where if config is None else config.where)


def _neighbours(own: dict[str, Document]) -> dict[str, Where]:
    listed = (own[side] for side in ("before", "after") if side in own)
    scalars = (item for items in listed if isinstance(items, Items) for item in items.items)
    return {item.text: item.where for item in scalars if isinstance(item, Scalar)}
