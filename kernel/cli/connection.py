"""Where the hub is and who asks it: from the environment, else from the ready file of the working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kernel.cli.exits import Exit
from kernel.cli.failure import CommandFailed, Unreachable

READY_FILE = Path("var/ready.json")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
START_ONE = "start one with `make run`, or set POINTSMAN_HUB (and POINTSMAN_TOKEN) to one that runs"


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    """Without a slash at the end."""
    token: str | None
    source: str
    """What named the hub: `POINTSMAN_HUB`, or the path of the ready file."""
    pid: int | None = None
    """The hub's process, where the ready file tells it."""

    @property
    def is_local(self) -> bool:
        return urlsplit(self.url).hostname in LOOPBACK

    @property
    def is_stale(self) -> bool:
        """Whether the ready file was left behind by a hub that is gone."""
        if self.pid is None or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


def find_hub(environment: Mapping[str, str], directory: Path) -> Connection:
    """`POINTSMAN_TOKEN` wins over the ready file's token; the ready file's token goes to no other hub."""
    token = environment.get("POINTSMAN_TOKEN", "").strip() or None
    named = environment.get("POINTSMAN_HUB", "").strip()
    if named:
        return Connection(url=_checked_url(named, "POINTSMAN_HUB"), token=_checked_token(token), source="POINTSMAN_HUB")
    path = directory / READY_FILE
    ready = _read_ready(path)
    return Connection(
        url=_checked_url(str(ready.get("url", "")), str(path)),
        token=_checked_token(token or _text(ready.get("token"))),
        source=str(READY_FILE),
        pid=ready.get("pid") if isinstance(ready.get("pid"), int) else None,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_ready(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise Unreachable(
            f"no hub is named: POINTSMAN_HUB is not set and there is no {READY_FILE} here", fix=START_ONE
        ) from None
    except (OSError, msgspec.DecodeError) as unreadable:
        raise CommandFailed(
            f"{path} cannot be read: {unreadable}",
            Exit.MISCONFIGURED,
            fix="a hub writes it when it starts: start one with `make run`, or set POINTSMAN_HUB",
        ) from unreadable


def _checked_url(url: str, source: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        right = False
    if not right:
        raise CommandFailed(
            f"{source} is {url!r}, which is not the address of a hub",
            Exit.MISCONFIGURED,
            fix="an address is http://HOST:PORT or https://HOST, for example http://127.0.0.1:8080",
        )
    return url.rstrip("/").removesuffix("/api/v1")


def _checked_token(token: str | None) -> str | None:
    if token is not None and not (token.isascii() and token.isprintable()):
        raise CommandFailed(
            "the token holds characters that no header may carry",
            Exit.MISCONFIGURED,
            fix="set POINTSMAN_TOKEN to the token as the hub printed it",
        )
    return token
