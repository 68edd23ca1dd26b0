"""Durations, sizes and rates as a person writes them."""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args, get_origin

import msgspec

Duration = Annotated[float, msgspec.Meta(ge=0, extra={"quantity": "duration"})]
"""Seconds; written `250ms`, `5s`, `2m`, `24h`, `7d`."""

Size = Annotated[int, msgspec.Meta(ge=0, extra={"quantity": "size"})]
"""Bytes; written `65536`, `64KiB`, `1MiB`."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """So many in so many seconds; written `5/10s`."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{duration_text(self.seconds)}"


EXPECTED = {
    "duration": "a duration such as 250ms, 5s, 2m or 24h",
    "size": "a size such as 65536, 64KiB or 1MiB",
    "rate": "a rate such as 5/10s",
}

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|)", re.ASCII)
_RATE = re.compile(r"(\d+)\s*/\s*(.+)", re.ASCII)


def duration(text: str) -> float:
    """Raises ValueError if `text` is none."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"expected {EXPECTED['duration']}")
    return float(match[1]) * _SECONDS[match[2]]


def size(text: str) -> int:
    """Raises ValueError if `text` is none."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"expected {EXPECTED['size']}")
    return int(match[1]) * _BYTES[match[2]]


def rate(text: str) -> Rate:
    """Raises ValueError if `text` is none."""
    match = _RATE.fullmatch(text)
    if match is None or not int(match[1]):
        raise ValueError(f"expected {EXPECTED['rate']}")
    seconds = duration(match[2])
    if not seconds:
        raise ValueError(f"expected {EXPECTED['rate']}")
    return Rate(count=int(match[1]), seconds=seconds)


def quantity_of(wanted: Any) -> str | None:
    """Which of the three a type is marked as."""
    if wanted is Rate:
        return "rate"
    for mark in get_args(wanted)[1:] if get_origin(wanted) is Annotated else ():
        if isinstance(mark, msgspec.Meta) and mark.extra and "quantity" in mark.extra:
            return str(mark.extra["quantity"])
    return None


def written(value: object, wanted: Any) -> object:
    """`value` as a person would write it: 5.0 as a duration is `5s`."""
    inner = get_args(wanted)
    if isinstance(value, (list, tuple)) and inner:
        return [written(item, inner[0]) for item in value]
    quantities = {quantity_of(wanted)} | {quantity_of(one) for one in inner}
    if "duration" in quantities and isinstance(value, (int, float)):
        return duration_text(float(value))
    return str(value) if isinstance(value, Rate) else value


PARSERS: dict[str, Any] = {"duration": duration, "size": size, "rate": rate}


def duration_text(seconds: float) -> str:
    """The shortest way to write it: 900.0 → `15m`."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _SECONDS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{round(seconds * 1000, 3):.12g}ms" if seconds else "0s"
