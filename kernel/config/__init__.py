"""YAML in, frozen values out; every mistake names its place, and all are told at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from kernel.config.assign import assigned
from kernel.config.decode import Nothing, decode
from kernel.config.document import Document, Mistake, Table, Where, parse
from kernel.config.entries import entries_of
from kernel.config.quantity import Duration, Rate, Size
from kernel.config.settings import BusSettings, PluginEntry, Settings, contradictions
from kernel.errors import Misconfigured

__all__ = [
    "BusSettings",
    "Duration",
    "Mistake",
    "PluginEntry",
    "Rate",
    "Settings",
    "Size",
    "Where",
    "default_path",
    "load",
    "misconfigured",
    "read",
]


def load(path: Path | None = None, sets: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in the file at `path` (or the default one), with each `dotted.key=value` of `sets` laid over it.

    Raises:
        Misconfigured: its message has one line for each mistake, `file:line:column: key: …`.
    """
    mistakes: list[Mistake] = []
    settings = read(path, sets, mistakes, environ)
    if mistakes:
        raise misconfigured(mistakes)
    return settings


def read(
    path: Path | None, sets: Sequence[str], mistakes: list[Mistake], environ: Mapping[str, str] | None = None
) -> Settings:
    """As `load`, but what is wrong is added to `mistakes`; then the settings are good for nothing but to find more.

    Raises:
        Misconfigured: there is no file to read.
    """
    environ = os.environ if environ is None else environ
    path = default_path(environ) if path is None else path
    found: list[Mistake] = []
    document = _sections(parse(_text(path), str(path), environ, found), found)
    for assignment in sets:
        document = assigned(document, assignment, environ, found)
    settings = _settings(document, found)
    found += _contradicting(document, found)
    mistakes += found
    return settings


def default_path(environ: Mapping[str, str] | None = None) -> Path:
    """`$POINTSMAN_CONFIG`, else `conf/local.yaml` of the working directory, else the one that was shipped."""
    named = (os.environ if environ is None else environ).get("POINTSMAN_CONFIG")
    if named:
        return Path(named)
    here, package = Path("conf/local.yaml"), Path(__file__).parent.parent
    shipped = (package / "conf/local.yaml", package.parent / "conf/local.yaml")
    return next((path for path in (here, *shipped) if path.is_file()), here)


def misconfigured(mistakes: Iterable[Mistake]) -> Misconfigured:
    """All of them in one error, each on a line of its own, in the order of the file."""
    found = sorted(dict.fromkeys(mistakes), key=lambda mistake: (mistake.where.source, mistake.where.line))
    lines = [str(mistake) for mistake in found]
    message = lines[0] if len(lines) == 1 else "\n".join((f"{len(lines)} mistakes, nothing was started", *lines))
    return Misconfigured(message, details={"mistakes": lines})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        told = "expected a configuration, found no such file: name one with --config or $POINTSMAN_CONFIG"
        raise Misconfigured(f"{path}: {told}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: expected a configuration in UTF-8, found that {error}") from error


def _sections(document: Document, mistakes: list[Mistake]) -> Table:
    """A file that holds nothing is all defaults; one that holds a list or a text is a mistake."""
    if isinstance(document, Table):
        return document
    if document.shown != "nothing":
        mistakes.append(Mistake(document.where, "", f"expected sections such as plugins:, found {document.shown}"))
    return Table({}, {}, document.where)


def _settings(document: Table, mistakes: list[Mistake]) -> Settings:
    """The sections by their types, the plugins by their own rules."""
    plugins = document.entries.get("plugins")
    entries = () if plugins is None else entries_of(plugins, mistakes)
    sections = {name: section for name, section in document.entries.items() if name != "plugins"}
    keys = {name: where for name, where in document.keys.items() if name != "plugins"}
    settings = decode(Table(sections, keys, document.where), Settings, "", mistakes)
    return msgspec.structs.replace(Settings() if isinstance(settings, Nothing) else settings, plugins=entries)


def _contradicting(document: Table, found: list[Mistake]) -> list[Mistake]:
    """What does not go together among the values that could be read: told with the rest, not at the next start."""
    wrong = {mistake.key.partition("[")[0] for mistake in found}
    sections = {
        name: _less(section, f"{name}.", wrong) if isinstance(section, Table) else section
        for name, section in document.entries.items()
    }
    settings = _settings(_less(Table(sections, document.keys, document.where), "", wrong | {"plugins"}), [])
    return [
        Mistake(_place(document, keys[0]), keys[0], told)
        for keys, told in contradictions(settings)
        if wrong.isdisjoint(keys)
    ]


def _less(table: Table, prefix: str, wrong: set[str]) -> Table:
    """A mapping without the entries that are wrong."""
    kept = [name for name in table.entries if prefix + name not in wrong]
    return Table({name: table.entries[name] for name in kept}, {name: table.keys[name] for name in kept}, table.where)


def _place(document: Table, key: str) -> Where:
    """Where a key stands; of one that is left to its default, its section or the file."""
    place: Document = document
    for name in key.split("."):
        if not isinstance(place, Table) or name not in place.entries:
            break
        place = place.entries[name]
    return place.where
