"""Says that the hub serves, and where: the ready file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kernel.private_file import write_private


class Ready(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is known once the hub serves: the content of the ready file."""

    url: str
    token: str | None
    node_id: str
    pid: int


@contextmanager
def ready_file(path: Path | None, ready: Ready) -> Iterator[None]:
    """There while the hub is ready: written whole or not at all, for its owner only."""
    if path is None:
        yield
        return
    write_private(path, msgspec.json.encode(ready))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
