"""Bodies and queries: what is taken, and what is told of what is not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kernel.api.bodies import from_body, from_query
from kernel.errors import Invalid, Malformed


class Wanted(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    how_many: int = 1
    labels: dict[str, str] = {}
    flag: bool = False

    def problems(self) -> dict[str, str]:
        return {"name": "must not be nobody"} if self.name == "nobody" else {}


def bad_fields(raw: bytes) -> dict[str, str]:
    with pytest.raises(Invalid) as told:
        from_body(raw, Wanted)
    assert told.value.details is not None
    fields: dict[str, str] = told.value.details["fields"]
    return fields


def test_a_body_becomes_a_value() -> None:
    assert from_body(b'{"name": "a", "howMany": 3, "unknown": []}', Wanted) == Wanted(name="a", how_many=3)


def test_every_bad_field_is_named_at_once() -> None:
    bad = bad_fields(b'{"howMany": "3", "labels": {"a": 1}, "flag": null}')
    assert set(bad) == {"name", "howMany", "labels", "flag"}
    assert bad["name"] == "is required"
    assert bad["howMany"] == "expected `int`, got `str`"


def test_the_place_inside_a_field_is_told() -> None:
    assert bad_fields(b'{"name": "a", "labels": {"a": 1}}')["labels"] == "expected `str`, got `int` at [...]"


def test_what_fields_say_together_is_checked_last() -> None:
    assert bad_fields(b'{"name": "nobody"}') == {"name": "must not be nobody"}


def test_no_text_may_hold_nul() -> None:
    assert set(bad_fields(b'{"name": "a\\u0000b", "labels": {"x\\u0000": "y"}}')) == {"name", "labels"}


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert from_body(rb'{"name": "a\\u0000"}', Wanted).name == r"a\u0000"


def test_an_empty_body_is_an_empty_object() -> None:
    assert bad_fields(b"  ") == {"name": "is required"}


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b'"text"', b"3", b"null", b"true", b"\xff\xfe", b'{"a":\xc3}', b"[" * 100_000, b'{"name":"a"} x'],
)
def test_what_is_no_json_object_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed) as told:
        from_body(raw, Wanted)
    assert told.value.code == "invalid_request"


@pytest.mark.parametrize(("query", "expected"), [("flag=true", True), ("flag=1", True), ("flag=0", False), ("", False)])
def test_a_query_is_read_leniently(query: str, expected: Any) -> None:
    assert from_query(f"name=a&{query}", Wanted).flag is expected


def test_an_empty_value_in_a_query_is_no_value() -> None:
    assert from_query("name=a&howMany=", Wanted).how_many == 1


def test_the_last_of_two_values_counts() -> None:
    assert from_query("name=a&name=b", Wanted).name == "b"
