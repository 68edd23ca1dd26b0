"""Runs code of a plugin outside of a hook: what it raises comes back as a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def guarded(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What `call` gives, or what it raised: importing and building a plugin runs whatever its author wrote."""
    try:
        return call(), None
    except (Exception, SystemExit) as error:
        return None, error
