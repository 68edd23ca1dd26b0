"""Runs the migrations on the connection that it is given, inside that connection's transaction."""

from __future__ import annotations

from alembic import context

from plugins.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
