"""Cursors and limits of lists."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kernel.api.bodies import from_query
from kernel.api.pages import PageQuery, cursor, listed
from kernel.clock import Instant
from kernel.errors import Invalid
from kernel.storage import Keyset, Page


class Row(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: Instant


def rows(count: int) -> list[Row]:
    return [Row(id=f"row-{n}", created=Instant(1_000 - n)) for n in range(count)]


def page_of(found: list[Row], limit: int, total: int | None = None) -> dict[str, Any]:
    page = Page(limit=limit)
    return listed("rows", found, page, created=lambda row: row.created, show=lambda row: {"id": row.id}, total=total)


def test_a_cursor_leads_to_the_row_after_the_last_one_shown() -> None:
    answer = page_of(rows(3), 2)
    assert [row["id"] for row in answer["rows"]] == ["row-0", "row-1"]
    after = from_query(f"cursor={answer['nextCursor']}", PageQuery).page.after
    assert after == Keyset(created=Instant(999), id="row-1")


def test_the_last_page_has_no_cursor() -> None:
    assert page_of(rows(2), 2)["nextCursor"] is None


def test_an_empty_list_is_a_page() -> None:
    assert page_of([], 2, total=0) == {"rows": [], "nextCursor": None, "totalCount": 0}


def test_the_count_is_left_out_unless_it_was_asked_for() -> None:
    assert "totalCount" not in page_of(rows(1), 2)


def test_without_a_limit_a_page_holds_fifty() -> None:
    assert from_query("", PageQuery).page == Page(limit=50)


def test_who_asks_for_too_much_gets_the_most() -> None:
    assert from_query("limit=5000", PageQuery).page.limit == 200


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_no_number_of_rows_is_named(limit: str) -> None:
    with pytest.raises(Invalid) as told:
        from_query(f"limit={limit}", PageQuery)
    assert told.value.details is not None
    assert list(told.value.details["fields"]) == ["limit"]


GOOD = cursor(Keyset(created=Instant(5), id="x"))


@pytest.mark.parametrize("text", ["x", "%20", GOOD[:-2], "W10", "WyJhIiwiYiJd", "é", "W" * 4000])
def test_a_cursor_that_is_none_of_ours_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as told:
        from_query(f"cursor={text}", PageQuery)
    assert told.value.code == "validation_error"
