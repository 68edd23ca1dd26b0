"""What an agent is given when it starts: values, secrets. Asked for when it executes, never stored."""

from __future__ import annotations

from typing import Literal

import msgspec


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """One secret of the start request (design/wire.md, create)."""

    name: str
    value: str
    type: Literal["environment", "file", "variable"] = "environment"
    target: str = ""
    """Variable or path; the name when empty."""
    source: str = ""
    """Who gave it, for people."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a `resolve_environment` hook; later plugins override earlier ones by name."""

    values: dict[str, str] = {}
    secrets: tuple[Secret, ...] = ()


def merged(parts: list[Environment]) -> Environment:
    values: dict[str, str] = {}
    secrets: dict[str, Secret] = {}
    for part in parts:
        values.update(part.values)
        secrets.update({secret.name: secret for secret in part.secrets})
    return Environment(values=values, secrets=tuple(secrets.values()))
