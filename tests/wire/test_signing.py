"""Two readings of the signature agree: the hub's, and the one that these tests' brokers use."""

from __future__ import annotations

import base64
import time

import pytest

from kernel import wire
from tests.harness.signing import Asked, canonical, fault, new_nonce, signature, signed

SECRET = bytes(range(32))
HEADERS = {
    "X-Scion-Broker-ID": "b",
    "X-Scion-Timestamp": "1700000000",
    "X-Scion-Nonce": "AAECAwQFBgcICQoLDA0ODw==",
    "X-Scion-Signed-Headers": "host;x-extra",
    "Host": "hub:80",
    "X-Extra": "  spaces  ",
}


def test_the_canonical_string_is_as_written_down() -> None:
    asked = Asked(method="POST", path="/a%20b", query="x=%20&y=1", headers=HEADERS, body=b"{}")
    assert canonical(asked).decode() == (
        "POST\n/a b\nx=%20&y=1\n1700000000\nAAECAwQFBgcICQoLDA0ODw==\nhost:hub:80\nx-extra:spaces\n"
        "RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o="
    )


def test_an_empty_body_adds_nothing() -> None:
    asked = Asked(method="GET", path="/a", headers={**HEADERS, "X-Scion-Signed-Headers": ""})
    assert canonical(asked).endswith(b"\nAAECAwQFBgcICQoLDA0ODw==\n")


def test_a_signature_is_standard_base64_of_32_bytes() -> None:
    made = signature(SECRET, Asked(method="GET", path="/a", headers=HEADERS))
    assert len(base64.b64decode(made, validate=True)) == 32


def test_a_nonce_is_padded_url_safe_base64_of_16_bytes() -> None:
    assert len(base64.urlsafe_b64decode(new_nonce())) == 16
    assert new_nonce() != new_nonce()


@pytest.mark.parametrize(
    "change",
    [{"method": "PUT"}, {"path": "/b"}, {"query": "q=1"}, {"body": b"x"}, {"headers": {**HEADERS, "Host": "x"}}],
)
def test_every_part_is_covered(change: dict[str, object]) -> None:
    parts = {"method": "POST", "path": "/a", "query": "", "headers": HEADERS, "body": b"{}"}
    one, other = Asked(**parts), Asked(**{**parts, **change})  # type: ignore[arg-type]
    assert signature(SECRET, one) != signature(SECRET, other)


@pytest.mark.parametrize("cover", [None, {"Host": " hub ", "X-Dispatch-Id": "d"}])
@pytest.mark.parametrize("body", [b"", b'{"a": "\xc3\xbc"}'])
def test_what_the_hub_signs_is_read_as_good(body: bytes, cover: dict[str, str] | None) -> None:
    path, query = "/api/v1/agents/a%20b/start", "projectId=p&groveId=p"
    headers = wire.signed_headers("b", SECRET, "POST", path, query, body, now=int(time.time()), cover=cover)
    asked = Asked(method="POST", path=path, query=query, headers=headers, body=body)
    seen: set[str] = set()
    assert fault(SECRET, "b", asked, seen) is None
    assert fault(SECRET, "b", asked, seen) == "nonce was used before"
    assert headers == signed("b", SECRET, "POST", path, query=query, body=body, nonce=headers["X-Scion-Nonce"],
                             timestamp=int(headers["X-Scion-Timestamp"]), cover=cover)  # fmt: skip
