"""The typed reading of a document, for types that only plugins use."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal, NewType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.config import Duration, Mistake, Rate, Size, Where
from kernel.config.decode import Nothing, decode
from kernel.config.document import document_of, parse
from kernel.config.quantity import duration, duration_text

RegionId = NewType("RegionId", str)


class Mode(enum.StrEnum):
    FAST = "fast"
    OFF = "off"


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    count: Annotated[int, msgspec.Meta(gt=0)] = 1


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    region: RegionId = RegionId("eu")
    wait: Duration | None = 1.0
    limit: Size = 5
    rates: dict[str, Rate] = {}
    mode: Mode = Mode.FAST
    level: Literal[1, 2] = 1
    inners: list[Inner] = []
    names: frozenset[str] = frozenset()
    weight: float = 1.0
    anything: Any = None
    either: int | str = 0
    pair: tuple[int, int] = (0, 0)


def outer(text: str) -> Outer:
    found: list[Mistake] = []
    value = decode(parse(text, "t", {}, found), Outer, "", found)
    assert not found, [str(mistake) for mistake in found]
    assert not isinstance(value, Nothing)
    return value


def mistakes(text: str) -> list[str]:
    found: list[Mistake] = []
    assert decode(parse(text, "t", {}, found), Outer, "", found) is Nothing.HERE
    return [str(mistake) for mistake in found]


def test_types_of_plugins_are_read() -> None:
    assert outer(
        """
        name: x
        region: us
        wait: null
        limit: 2KiB
        rates: {a: 1/1s}
        mode: off
        level: 2
        inners: [{count: 3}, {}]
        names: [a, b]
        weight: 1e3
        anything: {a: [1, true, null, 2026-01-02, x, 1.5]}
        either: word
        pair: [1, 2]
        """
    ) == Outer(
        name="x",
        region=RegionId("us"),
        wait=None,
        limit=2048,
        rates={"a": Rate(count=1, seconds=1.0)},
        mode=Mode.OFF,
        level=2,
        inners=[Inner(count=3), Inner()],
        names=frozenset({"a", "b"}),
        weight=1000.0,
        anything={"a": [1, True, None, "2026-01-02", "x", 1.5]},
        either="word",
        pair=(1, 2),
    )


def test_mistakes_in_nested_values_are_all_told() -> None:
    told = mistakes(
        "inners: [{count: 0}, {size: 1}, 5]\nrates: {a: x}\nmode: slow\nlevel: 3\npair: [1]\nweight: .nan\n"
    )
    assert {line.split(" expected", 1)[0] for line in told} == {
        "t:1:1: name:",
        "t:1:18: inners[0].count:",
        "t:1:23: inners[1].size:",
        "t:1:33: inners[2]:",
        "t:2:12: rates.a:",
        "t:3:7: mode:",
        "t:4:8: level:",
        "t:5:7: pair:",
        "t:6:9: weight:",
    }


@pytest.mark.parametrize("trap", ["no", "012", "1:20"])
def test_traps_of_yaml_are_refused_where_anything_goes(trap: str) -> None:
    assert "expected a value that reads one way" in mistakes(f"name: x\nanything: [{trap}]\n")[0]


def test_own_check_of_a_type_is_told_at_its_place() -> None:
    class Range(msgspec.Struct, frozen=True):
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("expected low to be at most high")

    found: list[Mistake] = []
    decode(parse("a: {low: 2, high: 1}", "t", {}, found), dict[str, Range], "", found)
    assert [str(mistake) for mistake in found] == ["t:1:4: a: expected low to be at most high"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_plain_values_come_through_unchanged(value: object) -> None:
    found: list[Mistake] = []
    assert decode(document_of(value, Where("t")), Any, "", found) == value
    assert not found


@given(st.integers(min_value=0, max_value=10_000_000))
def test_duration_reads_as_it_was_written(milliseconds: int) -> None:
    assert duration(duration_text(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    found: list[Mistake] = []
    document = parse(text, "t", {}, found)
    decode(document, Outer, "", found)
    assert all(str(mistake) for mistake in found)
