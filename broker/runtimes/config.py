"""The configuration of an agent in the process runtime: what it may say, and every fault in it at once."""

from __future__ import annotations

import re
import signal
from typing import Any, TypeGuard, TypeVar

import msgspec

T = TypeVar("T")

MOST_GRACE = 600.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class ProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A checked configuration."""

    command: list[str]
    env: dict[str, str]
    workdir: str | None
    stop_signal: int
    stop_grace: float
    message_command: list[str] | None
    required_env: list[str]


def read_config(config: dict[str, Any]) -> tuple[ProcessConfig | None, dict[str, str]]:
    """The configuration, or one entry for each field that is wrong. Fields of other runtimes are left alone."""
    reader = _Reader(config)
    read = ProcessConfig(
        command=reader.words("command") or [],
        env=reader.environment("env"),
        workdir=reader.text("workdir"),
        stop_signal=reader.signal("stopSignal", signal.SIGTERM),
        stop_grace=reader.duration("stopGrace", 10.0),
        message_command=reader.words("messageCommand"),
        required_env=reader.names("requiredEnv"),
    )
    if not read.command and "command" not in reader.faults:
        reader.faults["command"] = 'is missing: give the command as a list of words, ["python3", "agent.py"]'
    return (None, reader.faults) if reader.faults else (read, {})


class _Reader:
    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self.faults: dict[str, str] = {}

    def words(self, name: str) -> list[str] | None:
        value = self._config.get(name)
        if value is None:
            return None
        if isinstance(value, list) and value and all(_is_text(one) for one in value) and value[0]:
            return list(value)
        self._wrong(name, 'is a list of words, the program first: ["python3", "agent.py"]', None)
        return None

    def environment(self, name: str) -> dict[str, str]:
        value = self._config.get(name)
        if value is None:
            return {}
        if isinstance(value, dict) and all(_is_name(key) and _is_text(one) for key, one in value.items()):
            return dict(value)
        return self._wrong(name, "maps names (without = ) to texts", dict[str, str]())

    def text(self, name: str) -> str | None:
        value = self._config.get(name)
        if value is None or (_is_text(value) and value):
            return value
        self._wrong(name, "is the path of a folder", None)
        return None

    def names(self, name: str) -> list[str]:
        value = self._config.get(name)
        if value is None:
            return []
        if isinstance(value, list) and all(_is_name(one) for one in value):
            return list(value)
        return self._wrong(name, "is a list of names of the environment", list[str]())

    def signal(self, name: str, default: int) -> int:
        value = self._config.get(name)
        if value is None:
            return default
        found = getattr(signal, f"SIG{value.upper().removeprefix('SIG')}", None) if isinstance(value, str) else None
        if isinstance(found, signal.Signals):
            return found
        return self._wrong(name, "is the name of a signal, as TERM or INT", default)

    def duration(self, name: str, default: float) -> float:
        value = self._config.get(name)
        if value is None:
            return default
        match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        if match:
            value = float(match[1]) * _SECONDS[match[2]]
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_GRACE:
            return float(value)
        return self._wrong(name, "is a time as 500ms, 10s or 2m, at most 10m", default)

    def _wrong(self, name: str, why: str, instead: T) -> T:
        self.faults[name] = f"{why}; found {self._config[name]!r:.80}"
        return instead


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and "\0" not in value


def _is_name(value: Any) -> bool:
    return _is_text(value) and bool(value) and "=" not in value
