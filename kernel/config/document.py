"""A YAML text as a tree in which every value knows where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

import msgspec
import yaml

_STANDARD = "tag:yaml.org,2002:"
_PLAIN = {
    _STANDARD + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}
_REFERENCE = re.compile(r"\$?\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Where(msgspec.Struct, frozen=True):
    """A place in a file, or the option or the line of code that stands in for one."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Mistake(msgspec.Struct, frozen=True):
    """One thing to put right; `key` is the dotted path, empty for the document itself."""

    where: Where
    key: str
    complaint: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.where), self.key, self.complaint) if part)


class Scalar(msgspec.Struct, frozen=True):
    text: str
    """After `${NAME}` was replaced."""
    tag: str
    """What YAML 1.1 takes it for: str, int, float, bool, null, timestamp; `env` for a whole `${NAME}`."""
    where: Where
    raw: str
    """As it was written: messages show this, so that no secret from the environment is printed."""

    @property
    def shown(self) -> str:
        return self.raw or ("nothing" if self.tag == "null" else "an empty text")


class Items(msgspec.Struct, frozen=True):
    items: tuple[Document, ...]
    where: Where
    shown: str = "a list"


class Table(msgspec.Struct, frozen=True):
    entries: dict[str, Document]
    keys: dict[str, Where]
    where: Where
    shown: str = "a mapping"


Document: TypeAlias = Scalar | Items | Table


def parse(text: str, source: str, environ: Mapping[str, str], mistakes: list[Mistake], key: str = "") -> Document:
    """The tree of one YAML document. What is wrong with it is added to `mistakes`."""
    here = Where(source=source, line=1, column=1) if not key else Where(source=source)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        reader = _Reader(source, environ, mistakes, located=not key)
        return Scalar("", "null", here, "") if node is None else reader.document(node, key)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Where(source, mark.line + 1, mark.column + 1) if mark and not key else here
        mistakes.append(Mistake(where, key, f"expected YAML, found {_problem(error, text)}"))
    except yaml.YAMLError as error:
        mistakes.append(Mistake(here, key, f"expected YAML, found {' '.join(str(error).split())}"))
    except RecursionError:
        mistakes.append(Mistake(here, key, "expected settings, found YAML that is nested too deeply"))
    return Table(entries={}, keys={}, where=here)


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    problem = str(error.problem or error.context or "something else")
    mark = error.problem_mark
    if mark and any("${" in line for line in text.splitlines()[mark.line : mark.line + 1]):
        problem += ": put ${NAME} in quotes inside { } and [ ]"
    if "'\\t'" in problem:
        problem += ": indent with spaces, not with tabs"
    return problem


class _Reader:
    """Turns YAML nodes into documents: replaces `${NAME}`, refuses duplicate keys, own tags and loops."""

    def __init__(self, source: str, environ: Mapping[str, str], mistakes: list[Mistake], *, located: bool) -> None:
        self._source = source
        self._environ = environ
        self._mistakes = mistakes
        self._located = located
        self._open: list[yaml.Node] = []

    def document(self, node: yaml.Node, key: str) -> Document:
        where = self._where(node)
        if any(node is one for one in self._open):
            self._complain(where, key, "expected a value, found an alias of what it stands in")
            return Scalar("", "null", where, "")
        if node.tag not in _PLAIN:
            self._complain(where, key, f"expected a plain value, found the tag {node.tag}: remove the tag")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._table(node, where, key)
            if isinstance(node, yaml.SequenceNode):
                items = (self.document(item, f"{key}[{n}]") for n, item in enumerate(node.value))
                return Items(tuple(items), where)
            return self._scalar(node, where, key)
        finally:
            self._open.pop()

    def _table(self, node: yaml.MappingNode, where: Where, key: str) -> Table:
        entries: dict[str, Document] = {}
        keys: dict[str, Where] = {}
        for name_node, value_node in node.value:
            spot = self._where(name_node)
            if not isinstance(name_node, yaml.ScalarNode):
                self._complain(spot, key, "expected a name as the key, found a list or a mapping")
                continue
            name = str(name_node.value)
            path = f"{key}.{name}" if key else name
            if name in keys:
                self._complain(spot, path, f"expected each key once, found it again (first in line {keys[name].line})")
                continue
            keys[name] = spot
            entries[name] = self.document(value_node, path)
        return Table(entries, keys, where)

    def _scalar(self, node: yaml.Node, where: Where, key: str) -> Scalar:
        raw = str(node.value)
        tag = node.tag.removeprefix(_STANDARD)
        text = _REFERENCE.sub(lambda match: self._replaced(match, where, key), raw)
        if _REFERENCE.fullmatch(raw) and not raw.startswith("$$"):
            tag = "env"
        return Scalar(text, tag, where, raw)

    def _replaced(self, match: re.Match[str], where: Where, key: str) -> str:
        name = match[1]
        if match[0].startswith("$$"):
            return match[0][1:]
        if not _NAME.fullmatch(name):
            self._complain(where, key, f"expected ${{NAME}}, found {match[0]}: write $${{…}} for the text itself")
        elif name not in self._environ:
            self._complain(where, key, f"expected the environment variable {name}, found that it is not set")
        return self._environ.get(name, "")

    def _where(self, node: yaml.Node) -> Where:
        if not self._located or node.start_mark is None:
            return Where(self._source)
        return Where(self._source, node.start_mark.line + 1, node.start_mark.column + 1)

    def _complain(self, where: Where, key: str, complaint: str) -> None:
        self._mistakes.append(Mistake(where, key, complaint))


def document_of(value: object, where: Where) -> Document:
    """A plain Python value as a document: for entries that no file holds."""
    match value:
        case Mapping():
            entries = {str(name): document_of(inner, where) for name, inner in value.items()}
            return Table(entries, dict.fromkeys(entries, where), where)
        case list() | tuple():
            return Items(tuple(document_of(inner, where) for inner in value), where)
        case None:
            return Scalar("", "null", where, "")
        case bool():
            return Scalar(str(value).lower(), "bool", where, str(value).lower())
        case int() | float():
            return Scalar(str(value), type(value).__name__, where, str(value))
        case _:
            return Scalar(str(value), "str", where, str(value))
