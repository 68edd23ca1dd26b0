"""Makes text that others wrote safe for a terminal: nothing in it is obeyed, and nothing is hidden."""

from __future__ import annotations

import re
import unicodedata

BIDI = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make a line read in another order than it is stored."""
COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")


def clean(text: str) -> str:
    """One line: control characters are shown as escapes (`\\x1b`, `\\n`), never sent."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(character) if _is_control(character) else character for character in text)


def clean_block(text: str, *, colour: bool) -> str:
    """Lines of a log: keeps line ends and tabs, colours only if `colour`, and shows every other control."""
    lines = text.replace("\r\n", "\n")
    pieces = COLOUR.split(lines)
    kept = [_clean_lines(piece) if n % 2 == 0 else piece if colour else "" for n, piece in enumerate(pieces)]
    return "".join(kept) + ("\x1b[0m" if colour and len(pieces) > 1 else "")


def _clean_lines(text: str) -> str:
    return "".join(c if c in "\n\t" or not _is_control(c) else _escape(c) for c in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDI


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def width(text: str) -> int:
    """Columns that a terminal takes for it: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
