"""Pages of a list: the query that asks for one, and the opaque cursor that asks for the next."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from kernel.clock import Instant
from kernel.storage import Keyset, Page

LIMIT = 50
MOST = 200


class PageQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The part of a query that every list takes."""

    limit: int = LIMIT
    cursor: str | None = None
    count: bool = False

    def problems(self) -> dict[str, str]:
        found = {}
        if self.limit < 1:
            found["limit"] = f"expected a number from 1 to {MOST}, found {self.limit}"
        if self.cursor and _keyset(self.cursor) is None:
            found["cursor"] = "expected the nextCursor of an earlier answer, unchanged"
        return found

    @property
    def page(self) -> Page:
        """One that asks for more than the most gets the most."""
        after = _keyset(self.cursor) if self.cursor else None
        return Page(limit=min(self.limit, MOST), after=after)


class Row(Protocol):
    """What a list is made of."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)


def listed(
    name: str,
    rows: list[R],
    page: Page,
    *,
    created: Callable[[R], Instant],
    show: Callable[[R], dict[str, Any]],
    total: int | None = None,
) -> dict[str, Any]:
    """One page as JSON. `rows` holds one more than the page when more follow; `total` None leaves the count out."""
    shown = rows[: page.limit]
    following = cursor(Keyset(created=created(shown[-1]), id=shown[-1].id)) if len(rows) > page.limit else None
    answer: dict[str, Any] = {name: [show(row) for row in shown], "nextCursor": following}
    if total is not None:
        answer["totalCount"] = total
    return answer


def cursor(after: Keyset) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([after.created, after.id])).decode().rstrip("=")


def _keyset(text: str) -> Keyset | None:
    try:
        created, id = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=tuple[int, str])
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return Keyset(created=Instant(created), id=id) if 0 <= created < 2**62 and len(id) <= 64 else None


__all__ = ["LIMIT", "MOST", "PageQuery", "cursor", "listed"]
