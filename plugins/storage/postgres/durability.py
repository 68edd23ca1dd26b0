"""Whether a commit waits for the disk: asked for in the statement itself, so that it costs no way there and back."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from plugins.storage.ledger.query import param


def mode() -> Any:
    """A column that a statement must read. With the parameter `lazily` its commit does not wait for the disk: a crash
    of the server may undo it. For what the broker's dedupe and the epoch make good."""
    off = sa.case((param("lazily", sa.Boolean()), "off"), else_="on")
    return sa.func.set_config("synchronous_commit", off, sa.true()).label("committed")
