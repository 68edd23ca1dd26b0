"""Gives every agent the values that stand in the YAML file."""

from __future__ import annotations

import msgspec

from kernel import Environment, hookimpl


class StaticConfig(msgspec.Struct, frozen=True, kw_only=True):
    values: dict[str, str] = {}


class Plugin:
    api = 1
    Config = StaticConfig

    def __init__(self, config: StaticConfig) -> None:
        self._environment = Environment(values=config.values)

    @hookimpl
    async def resolve_environment(self) -> Environment:
        return self._environment
