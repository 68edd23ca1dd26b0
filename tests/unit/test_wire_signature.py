"""The signature is the one of the contract, to the byte."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from kernel import wire

SECRET = bytes(range(32))


def test_the_canonical_string_is_the_contracts() -> None:
    body = b'{"a":1}'
    text = wire.canonical_string(
        "post", "/api/v1/ä b", "x=%20&y", "1700000000", "N", [("X-Dispatch-Id", "  d 1 "), ("x-b", "")], body
    )
    digest = base64.b64encode(hashlib.sha256(body).digest())
    assert text == "POST\n/api/v1/ä b\nx=%20&y\n1700000000\nN\nx-dispatch-id:d 1\nx-b:\n".encode() + digest


def test_without_a_body_the_canonical_string_ends_with_a_newline() -> None:
    assert wire.canonical_string("GET", "/", "", "1", "N") == b"GET\n/\n\n1\nN\n"


def test_signed_headers_verify_and_cover_what_they_name() -> None:
    headers = wire.signed_headers(
        "b", SECRET, "POST", "/api/%C3%A4", "q=1", b"body", now=17, cover={"X-Dispatch-Id": "d"}
    )
    assert headers[wire.BROKER_ID] == "b"
    assert headers[wire.TIMESTAMP] == "17"
    assert headers["X-Scion-Signed-Headers"] == "X-Dispatch-Id"
    canonical = wire.canonical_string(
        "POST", "/api/ä", "q=1", "17", headers[wire.NONCE], wire.covered(headers), b"body"
    )
    assert wire.is_signed(SECRET, canonical, headers[wire.SIGNATURE])
    expected = base64.b64encode(hmac.new(SECRET, canonical, hashlib.sha256).digest()).decode()
    assert headers[wire.SIGNATURE] == expected


@pytest.mark.parametrize("signature", ["", "x", "é", "\udc80", "A" * 44])
def test_another_signature_is_refused_whatever_it_is_made_of(signature: str) -> None:
    assert not wire.is_signed(SECRET, b"text", signature)


def test_a_covered_header_that_is_missing_counts_as_empty() -> None:
    assert wire.covered({"x-scion-signed-headers": "a; b;;", "A": "1"}) == [("a", "1"), ("b", "")]
    assert wire.covered({}) == []


def test_new_nonces_have_the_form_and_differ() -> None:
    nonces = {wire.new_nonce() for _ in range(100)}
    assert len(nonces) == 100
    assert all(wire.is_nonce(one) for one in nonces)


@pytest.mark.parametrize(
    "nonce", ["", "abc", "A" * 24, "A" * 22, "A" * 22 + "=", "A" * 21 + "B==", "+" * 21 + "A==", "é" * 24, "A" * 44]
)
def test_other_texts_are_no_nonce(nonce: str) -> None:
    assert not wire.is_nonce(nonce)
