"""The order of plugins: that of the list, less what `before` and `after` say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.config import Mistake, PluginEntry
from kernel.loader.order import ordered


def order(*written: str) -> list[str]:
    """Each entry as `name`, `name<other` (before) or `name>other` (after)."""
    found: list[Mistake] = []
    uses = [entry.use for entry in ordered([entry(one) for one in written], found)]
    assert not found, [str(mistake) for mistake in found]
    return uses


def mistakes(*written: str) -> list[str]:
    found: list[Mistake] = []
    ordered([entry(one) for one in written], found)
    return [mistake.complaint for mistake in found]


def entry(written: str) -> PluginEntry:
    use, before, earlier = written.partition("<")
    use, after, later = use.partition(">")
    return PluginEntry.of(
        use, before=tuple(earlier.split(",")) if before else (), after=tuple(later.split(",")) if after else ()
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a b c", "a b c"),
        ("a b c d<b", "a d b c"),
        ("a>c b c d", "b c a d"),
        ("a<b b", "a b"),
        ("a b>a", "a b"),
        ("a b c d<a", "d a b c"),
        ("a>d b c d", "b c d a"),
        ("a b c<b,a", "c a b"),
        ("a>b,c b c d", "b c a d"),
        ("a b c<b d<c", "a d c b"),
        ("a b c<b d<b", "a c d b"),
        ("a>b b>c c", "c b a"),
        ("x.a x.b m:c<a", "m:c x.a x.b"),
        ("a b ./some/c.py<b", "a ./some/c.py b"),
        ("./some/c.py>b b", "b ./some/c.py"),
    ],
)
def test_who_asks_moves_next_to_the_one_it_names(written: str, expected: str) -> None:
    assert order(*written.split()) == expected.split()


def test_unknown_neighbour_is_a_mistake() -> None:
    assert mistakes("routes.local", "mine<routes.locl") == [
        "expected the name of a listed plugin, found routes.locl: did you mean routes.local?"
    ]


def test_short_name_that_two_go_by_is_none() -> None:
    assert "found same" in mistakes("x.same", "y.same", "mine<same")[0]


@pytest.mark.parametrize(
    ("written", "circle"),
    [
        ("a<b b<a", ("a", "b")),
        ("a<a", ("a",)),
        ("a>b b>a", ("a", "b")),
        ("x a<b b<c c<a", ("a", "b", "c")),
        ("a<b a2>b b<a", ("a", "b")),
    ],
)
def test_circle_is_a_mistake_that_names_its_members(written: str, circle: tuple[str, ...]) -> None:
    (told,) = mistakes(*written.split())
    assert told.startswith("expected an order, found a circle: ")
    assert set(told.removeprefix("expected an order, found a circle: ").split(" before ")) == set(circle)


@given(st.data())
def test_every_wish_that_can_be_granted_is(data: st.DataObject) -> None:
    """Wishes drawn along one hidden order never make a circle."""
    count = data.draw(st.integers(1, 7))
    hidden = data.draw(st.permutations(range(count)))
    place = {name: n for n, name in enumerate(hidden)}
    entries = []
    for name in range(count):
        later = [str(other) for other in range(count) if place[other] > place[name] and data.draw(st.booleans())]
        earlier = [str(other) for other in range(count) if place[other] < place[name] and data.draw(st.booleans())]
        entries.append(PluginEntry.of(str(name), before=tuple(later), after=tuple(earlier)))
    found: list[Mistake] = []
    result = [one.use for one in ordered(entries, found)]
    assert not found
    assert sorted(result) == sorted(one.use for one in entries)
    for one in entries:
        assert all(result.index(one.use) < result.index(other) for other in one.before)
        assert all(result.index(one.use) > result.index(other) for other in one.after)
