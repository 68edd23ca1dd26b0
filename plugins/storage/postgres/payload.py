"""What a NOTIFY carries: a hint, never a secret nor a message's text, and never more than the server takes."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

LIMIT = 7_900
"""Bytes of one payload. The server refuses the whole transaction at 8,000."""
PROBE = "probe"
"""The kind of what a bus sends itself."""


class Hint(msgspec.Struct, frozen=True, array_like=True):
    """Which node tells what kind of thing about which broker or intents. Later versions may append fields."""

    kind: str
    sender: str
    broker_id: str = ""
    ids: tuple[str, ...] = ()


def written(hint: Hint) -> Iterator[str]:
    """As one payload, or as many as its ids need."""
    bare = len(msgspec.json.encode(msgspec.structs.replace(hint, ids=())))
    size = bare
    ids: list[str] = []
    for one in hint.ids:
        more = len(msgspec.json.encode(one)) + 1
        if ids and size + more > LIMIT:
            yield _text(hint, ids)
            size, ids = bare, []
        size += more
        ids.append(one)
    yield _text(hint, ids)


def read(payload: str) -> Hint | None:
    """None when it is none of ours: anybody may NOTIFY a channel."""
    try:
        return msgspec.json.decode(payload, type=Hint)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _text(hint: Hint, ids: list[str]) -> str:
    return msgspec.json.encode(msgspec.structs.replace(hint, ids=tuple(ids))).decode()
