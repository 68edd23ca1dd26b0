"""A document read as a type: every mistake at once, each at its place."""

from __future__ import annotations

import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from kernel.config.document import Document, Items, Mistake, Scalar, Table
from kernel.config.quantity import EXPECTED, PARSERS, quantity_of

T = TypeVar("T")

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?", re.ASCII)
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SEQUENCES: dict[Any, Any] = {list: list, tuple: tuple, set: set, frozenset: frozenset, Sequence: tuple}


class Nothing(enum.Enum):
    """What stands for a value that could not be read: a mistake says why."""

    HERE = enum.auto()


def decode(document: Document, wanted: type[T], key: str, mistakes: list[Mistake]) -> T | Nothing:
    """`document` as a `wanted`. Adds to `mistakes` and gives `Nothing.HERE` if it is none."""
    value: T | Nothing = _Decoder(mistakes).value(document, wanted, key)
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(names)}" if names else "there are none"


def expectation(wanted: Any) -> str:
    """What a value of this type looks like, in words."""
    bare, quantity = _unwrapped(wanted)
    if quantity is not None:
        return EXPECTED[quantity]
    if get_origin(bare) in (Union, types.UnionType):
        return " or ".join("nothing" if one is type(None) else expectation(one) for one in get_args(bare))
    if get_origin(bare) is Literal or (isinstance(bare, type) and issubclass(bare, enum.Enum)):
        return f"one of {', '.join(_members(bare))}"
    return str(_EXPECTED_LEAF.get(bare) or _HOLDERS.get(get_origin(bare) or bare) or getattr(bare, "__name__", bare))


def _members(bare: Any) -> dict[str, Any]:
    members = get_args(bare) if get_origin(bare) is Literal else bare
    return {str(member.value if isinstance(member, enum.Enum) else member): member for member in members}


class _Decoder:
    def __init__(self, mistakes: list[Mistake]) -> None:
        self._mistakes = mistakes

    def value(self, document: Document, wanted: Any, key: str) -> Any:
        bare, quantity = _unwrapped(wanted)
        if quantity is not None:
            return self._quantity(document, wanted, quantity, key)
        if bare is Any or bare is object:
            return self._plain(document, key)
        origin = get_origin(bare)
        if origin in (Union, types.UnionType):
            return self._union(document, get_args(bare), wanted, key)
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            return self.struct(document, bare, key)
        if (origin or bare) in _SEQUENCES:
            return self._sequence(document, bare, wanted, key)
        if (origin or bare) in (dict, Mapping):
            return self._mapping(document, bare, wanted, key)
        return self._leaf(document, bare, wanted, key)

    # -- what holds others ------------------------------------------------------------------------------------

    def struct(self, document: Document, wanted: type[msgspec.Struct], key: str) -> Any:
        if isinstance(document, Scalar) and document.tag == "null":
            document = Table({}, {}, document.where)
        if not isinstance(document, Table):
            return self._wrong(document, key, "settings as `name: value`")
        fields = {field.encode_name: field for field in msgspec.structs.fields(wanted)}
        before = len(self._mistakes)
        for name, where in document.keys.items():
            if name not in fields:
                complaint = f"expected a known setting, found {name}: {nearest(name, fields)}"
                self._mistakes.append(Mistake(where, _path(key, name), complaint))
        found: dict[str, Any] = {}
        for name, field in fields.items():
            if name in document.entries:
                found[field.name] = self.value(document.entries[name], field.type, _path(key, name))
            elif field.required:
                self._mistakes.append(Mistake(document.where, _path(key, name), "expected a value, found nothing"))
        if len(self._mistakes) > before:
            return Nothing.HERE
        try:
            return wanted(**found)
        except (ValueError, TypeError) as error:  # from the type's own __post_init__
            return self._complain(document, key, str(error))

    def _sequence(self, document: Document, bare: Any, wanted: Any, key: str) -> Any:
        if not isinstance(document, Items):
            return self._wrong(document, key, _HOLDERS[list])
        make, inner = _SEQUENCES[get_origin(bare) or bare], get_args(bare)
        if make is tuple and inner and inner[-1] is not Ellipsis:
            return self._converted(document, self._plain(document, key), wanted, key)
        kind = inner[0] if inner else Any
        values = [self.value(item, kind, f"{key}[{n}]") for n, item in enumerate(document.items)]
        if Nothing.HERE in values:
            return Nothing.HERE
        return self._converted(document, make(values), wanted, key)

    def _mapping(self, document: Document, bare: Any, wanted: Any, key: str) -> Any:
        if not isinstance(document, Table):
            return self._wrong(document, key, _HOLDERS[dict])
        kind = get_args(bare)[1] if get_args(bare) else Any
        values = {name: self.value(entry, kind, _path(key, name)) for name, entry in document.entries.items()}
        if any(value is Nothing.HERE for value in values.values()):
            return Nothing.HERE
        return self._converted(document, values, wanted, key)

    def _union(self, document: Document, members: tuple[Any, ...], wanted: Any, key: str) -> Any:
        if isinstance(document, Scalar) and document.tag == "null" and type(None) in members:
            return None
        others = [member for member in members if member is not type(None)]
        if len(others) == 1:
            return self.value(document, others[0], key)
        return self._converted(document, self._plain(document, key), wanted, key)

    # -- what holds nothing -----------------------------------------------------------------------------------

    def _quantity(self, document: Document, wanted: Any, quantity: str, key: str) -> Any:
        if not isinstance(document, Scalar):
            return self._wrong(document, key, EXPECTED[quantity])
        try:
            value = PARSERS[quantity](document.text)
        except ValueError:
            return self._wrong(document, key, EXPECTED[quantity])
        return self._converted(document, value, wanted, key)

    def _leaf(self, document: Document, bare: Any, wanted: Any, key: str) -> Any:
        if not isinstance(document, Scalar):
            return self._wrong(document, key, _EXPECTED_LEAF.get(bare, "one value"))
        if get_origin(bare) is Literal or (isinstance(bare, type) and issubclass(bare, enum.Enum)):
            return self._choice(document, bare, key)
        read = _READERS.get(bare)
        if read is None:
            return self._converted(document, self._plain(document, key), wanted, key)
        value = read(document)
        if value is Nothing.HERE:
            return self._wrong(document, key, _EXPECTED_LEAF[bare], _trap(document, bare))
        return self._converted(document, value, wanted, key)

    def _choice(self, document: Scalar, bare: Any, key: str) -> Any:
        named = _members(bare)
        if document.text in named:
            return named[document.text]
        return self._wrong(document, key, f"one of {', '.join(named)}")

    def _plain(self, document: Document, key: str) -> Any:
        """As YAML would have it, without its traps."""
        match document:
            case Table():
                return {name: self._plain(entry, _path(key, name)) for name, entry in document.entries.items()}
            case Items():
                return [self._plain(item, f"{key}[{n}]") for n, item in enumerate(document.items)]
        kinds: dict[str, type] = {"int": int, "float": float, "bool": bool}
        kind = kinds.get(document.tag)
        if document.tag == "null":
            return None
        if kind is None:
            return document.text
        value = _READERS[kind](document)
        clear = kind is not bool or document.text.lower() in ("true", "false")
        if value is Nothing.HERE or not clear:
            return self._wrong(document, key, "a value that reads one way", _trap(document, kind))
        return value

    # -- complaints -------------------------------------------------------------------------------------------

    def _converted(self, document: Document, value: Any, wanted: Any, key: str) -> Any:
        """The last word is msgspec's: constraints, and types that only it knows."""
        if value is Nothing.HERE:
            return value
        try:
            return msgspec.convert(value, wanted)
        except msgspec.ValidationError as error:
            told = str(error).replace("Expected", "expected", 1)
            return self._complain(document, key, f"{told} (found {document.shown})")

    def _wrong(self, document: Document, key: str, expected: str, hint: str = "") -> Nothing:
        return self._complain(document, key, f"expected {expected}, found {document.shown}{hint}")

    def _complain(self, document: Document, key: str, complaint: str) -> Nothing:
        self._mistakes.append(Mistake(document.where, key, complaint))
        return Nothing.HERE


def _unwrapped(wanted: Any) -> tuple[Any, str | None]:
    """The type inside `Annotated` and `NewType`, and which quantity it was marked as."""
    if isinstance(wanted, typing.NewType):
        return _unwrapped(wanted.__supertype__)
    bare = get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted
    return bare, quantity_of(wanted)


def _text(found: Scalar) -> Any:
    return found.text if found.tag in ("str", "env", "timestamp") else Nothing.HERE


def _integer(found: Scalar) -> Any:
    return int(found.text) if found.tag in ("int", "env") and _INTEGER.fullmatch(found.text) else Nothing.HERE


def _number(found: Scalar) -> Any:
    # `1e3` is text to YAML 1.1; to everybody else it is a number.
    if found.tag not in ("int", "float", "env", "str") or not _NUMBER.fullmatch(found.text):
        return Nothing.HERE
    value = float(found.text)
    return value if math.isfinite(value) else Nothing.HERE


def _boolean(found: Scalar) -> Any:
    return _BOOLEANS.get(found.text.lower(), Nothing.HERE) if found.tag in ("bool", "env") else Nothing.HERE


_READERS: dict[Any, Any] = {str: _text, int: _integer, float: _number, bool: _boolean}
_EXPECTED_LEAF: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

_HOLDERS: dict[Any, str] = {
    **dict.fromkeys(_SEQUENCES, "a list as `[a, b]`"),
    **dict.fromkeys((dict, Mapping), "a mapping as `name: value`"),
}


def _trap(found: Scalar, kind: type) -> str:
    """What YAML makes of it behind the writer's back, and what to write instead."""
    if kind is int and found.tag == "str" and _INTEGER.fullmatch(found.text):
        return " in quotes: remove them"
    if found.tag == "int" and not _INTEGER.fullmatch(found.text):
        return ", which YAML reads in another base (a leading 0 is octal, a colon is base 60): write plain digits"
    if found.tag == "bool":
        return f", which YAML reads as {str(_BOOLEANS[found.text.lower()]).lower()}: put it in quotes if text is meant"
    if kind is str and found.tag in ("int", "float"):
        return ", a number: put it in quotes"
    return ""


def _path(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
