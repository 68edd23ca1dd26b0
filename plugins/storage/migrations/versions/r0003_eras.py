"""A server that crashed, or another that took its place, is known by what it forgot."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from plugins.storage.schema import Count, Id

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.create_table(
            "eras",
            sa.Column("name", sa.Text(), nullable=False),
            sa.Column("id", Id(), nullable=False),
            sa.Column("since", Count(), nullable=False),
            sa.PrimaryKeyConstraint("name", name=op.f("pk_eras")),
            prefixes=["UNLOGGED"],
        )
        op.execute("INSERT INTO eras (name, id, since) VALUES ('intents', gen_random_uuid(), 0)")
