"""Keyset pages: newest first by (created, id), from after the last row of the page before."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kernel import Page, is_uuid
from plugins.storage.ledger.query import param
from plugins.storage.ledger.rows import NOBODY

EARLIEST, LATEST = 0, 253_402_300_799_999_999
"""From 1970 to the end of the year 9999: what a column holds in both databases."""


def beyond(created: sa.ColumnElement[Any], id_: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Rows after the page's edge; a row comparison, so that one index serves it."""
    return sa.tuple_(created, id_) < sa.tuple_(param("edge_created"), param("edge_id"))


def edge(page: Page) -> dict[str, Any]:
    if page.after is None:
        return {}
    created = max(EARLIEST, min(LATEST, page.after.created))
    return {"edge_created": created, "edge_id": page.after.id.lower() if is_uuid(page.after.id) else NOBODY}
