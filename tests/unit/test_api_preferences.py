"""`Prefer`, `X-Dispatch-Deadline` and `Idempotency-Key`."""

from __future__ import annotations

import pytest

from kernel.api import instants
from kernel.api.preferences import Preferences, key_of, preferences_of
from kernel.clock import Instant
from kernel.errors import Invalid


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", Preferences()),
        ("respond-async", Preferences(wait=0.0)),
        ("wait=10", Preferences(wait=10.0)),
        ("respond-async, wait=10", Preferences(wait=10.0)),
        ("wait=600", Preferences(wait=600.0)),
        ("wait=0", Preferences(wait=0.0)),
        ("deliver=hold", Preferences(deliver="hold")),
        ("Deliver=Now; foo=bar, wait=5", Preferences(deliver="now", wait=5.0)),
        ("deliver=hold, deliver=now", Preferences(deliver="hold")),
        ("return=minimal, handling=lenient", Preferences()),
    ],
)
def test_prefer_is_followed(header: str, expected: Preferences) -> None:
    assert preferences_of({"prefer": header}) == expected


@pytest.mark.parametrize("header", ["wait=601", "wait=-1", "wait=soon", "wait=", "wait=1e3", "wait=²", "deliver=never"])
def test_a_preference_that_cannot_be_followed_is_told(header: str) -> None:
    with pytest.raises(Invalid) as told:
        preferences_of({"prefer": header})
    assert "Prefer" in told.value.message


def test_a_deadline_in_seconds_is_taken() -> None:
    assert preferences_of({"x-dispatch-deadline": "2.5"}).deadline_in == 2.5


@pytest.mark.parametrize("text", ["1970-01-01T00:00:01Z", "1970-01-01T01:00:01+01:00", "1970-01-01t00:00:01.000000z"])
def test_a_deadline_as_a_time_is_taken(text: str) -> None:
    assert preferences_of({"x-dispatch-deadline": text}).deadline_at == Instant(1_000_000)


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf", "1e12", "tomorrow", "2026-11-25", "2026-11-25T09:30:00"])
def test_a_deadline_that_is_none_is_told(text: str) -> None:
    with pytest.raises(Invalid) as told:
        preferences_of({"x-dispatch-deadline": text})
    assert "X-Dispatch-Deadline" in told.value.message


def test_instants_keep_their_microseconds() -> None:
    instant = Instant(1_795_599_012_000_001)
    assert instants.written(instant).endswith(".000001Z")
    assert instants.read(instants.written(instant)) == instant


def test_a_key_is_hashed_with_method_path_and_body() -> None:
    def hash_of(method: str, path: str, body: bytes) -> str:
        key = key_of({"idempotency-key": "k"}, "user:1", method, path, body)
        assert key is not None
        return key.request_hash

    first = hash_of("POST", "/a", b"{}")
    assert first == hash_of("POST", "/a", b"{}")
    assert len({first, hash_of("PUT", "/a", b"{}"), hash_of("POST", "/b", b"{}"), hash_of("POST", "/a", b"")}) == 4


def test_without_the_header_there_is_no_key() -> None:
    assert key_of({}, "user:1", "POST", "/a", b"") is None


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_told(key: str) -> None:
    with pytest.raises(Invalid):
        key_of({"idempotency-key": key}, "user:1", "POST", "/a", b"")
