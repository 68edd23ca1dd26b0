"""A page of a list: where it begins, and how long it is."""

from __future__ import annotations

import msgspec

from kernel.clock import Instant


class Keyset(msgspec.Struct, frozen=True):
    """Where a page begins: after this row, newest first by (created, id)."""

    created: Instant
    id: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a list, and from where. A backend reads `limit + 1` rows to know whether more follow."""

    limit: int = 50
    after: Keyset | None = None
