"""A project: a namespace of agents."""

from __future__ import annotations

import re
import unicodedata

import msgspec

from kernel.clock import Instant


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `projects`. The id is random, the slug unique."""

    id: str
    name: str
    slug: str
    git_remote: str | None = None
    default_runtime_broker_id: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    created: Instant = Instant(0)
    updated: Instant = Instant(0)
    created_by: str | None = None
    owner_id: str | None = None
    visibility: str = "private"


def slug_of(name: str) -> str:
    """The name in lower-case letters, digits and single dashes, at most 63; empty when nothing is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:63].rstrip("-")


def is_slug(text: str) -> bool:
    return bool(text) and slug_of(text) == text
