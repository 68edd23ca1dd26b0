"""Messages that were said together are found by their group."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    grouped = sa.text("group_id IS NOT NULL")
    op.create_index(
        op.f("ix_messages_group_id"), "messages", ["group_id"], sqlite_where=grouped, postgresql_where=grouped
    )
