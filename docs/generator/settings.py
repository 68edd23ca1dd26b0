"""The page of settings: from conf/reference.yaml and the types that read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import yaml

from docs.generator.markdown import code, page, table
from kernel.config.settings import Settings

FILE = Path(__file__).resolve().parents[2] / "conf/reference.yaml"
SETTINGS = """
Every setting may be left out of a configuration file. `--set section.key=value` sets one for one start.

Durations are `250ms`, `5s`, `2m`, `24h`, `7d`. Sizes are `65536`, `64KiB`, `1MiB`. Rates are `5/10s`.
`${NAME}` takes a value from the environment. A line that begins with `...` goes on with the sentence above it.
"""


def settings() -> str:
    raw = FILE.read_text(encoding="utf-8")
    parts = [SETTINGS]
    why = dict(_comments(raw))
    for section, values in yaml.safe_load(raw).items():
        if section == "plugins":
            continue
        kinds = _kinds(section)
        rows = [
            (code(f"{section}.{key}"), code(_written(value)), kinds[key], why[section, key])
            for key, value in values.items()
        ]
        parts += [f"## {section}", table(("setting", "default", "kind", "why"), rows)]
    parts += ["## plugins", _plugins(raw)]
    return page("Settings", "conf/reference.yaml and kernel/config/settings.py", *parts)


def _comments(raw: str) -> Iterator[tuple[tuple[str, str], str]]:
    """(section, key) and its line of why."""
    section = ""
    for line in raw.splitlines():
        if found := re.match(r"(\w+):$", line):
            section = found[1]
        elif found := re.match(r"  (\w+): .*?  +# (.+)", line):
            yield (section, found[1]), found[2]


def _kinds(section: str) -> dict[str, str]:
    hints = get_type_hints(type(getattr(Settings(), section)), include_extras=True)
    return {name: _kind(hint) for name, hint in hints.items()}


def _kind(hint: Any) -> str:
    told = msgspec.inspect.type_info(hint)
    if isinstance(told, msgspec.inspect.Metadata):
        quantity = (told.extra or {}).get("quantity")
        return str(quantity) if quantity else _kind_of(told.type)
    return _kind_of(told)


def _kind_of(told: msgspec.inspect.Type) -> str:
    match told:
        case msgspec.inspect.BoolType():
            return "yes or no"
        case msgspec.inspect.IntType():
            return "number"
        case msgspec.inspect.StrType():
            return "text"
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(code(str(value)) for value in values)
        case msgspec.inspect.VarTupleType():
            return "list of durations"
        case msgspec.inspect.StructType():
            return "rate"
    raise TypeError(f"docs/generate.py has no word for {told}")


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _plugins(raw: str) -> str:
    comment = raw.partition("\n# Which plugins run")[2]
    lines = ("# Which plugins run" + comment).splitlines()
    told = [line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#")]
    return told[0] + "\n\n```yaml\nplugins:\n" + "\n".join(told[1:]) + "\n```"
